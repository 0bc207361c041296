"""Tests of the architecture: imports follow the order of layers, and the linters pass."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import s2video

ROOT = Path(s2video.__file__).resolve().parents[1]
PACKAGE = ROOT / "s2video"

# Lowest first: a module imports from its own folder and from those before it. Files of the package's top folder are
# listed by name.
FLOORS = """
    errors geometry version
    guidance system media config parallel
    decoding models records integrations
    sampling planning
    engine batch
    editorial review study probe api server fleet cli __main__
""".split()  # noqa: SIM905

# What must not come back, whatever becomes of the order: each was a detour of the data's way.
NEVER = {
    ("records", "engine"),
    ("records", "batch"),
    ("models", "sampling"),
    ("planning", "engine"),
    ("media", "config"),
}

# The command line reports bad input before torch is imported, so these modules import it only inside functions.
LIGHT = ("errors", "geometry", "version", "system", "config", "guidance.masks", "media.formats", "media.naming")
HEAVY = {"torch", "diffusers", "transformers", "accelerate"}


def module_files() -> dict[str, Path]:
    """Return dotted names below s2video -> files; a folder's `__init__` has the folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = module_files()


def imports_of(module: str) -> set[str]:
    """Return all imports in a file: modules of s2video by their name below it, others by their first name."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [] if not node.level else ["s2video", *package[: len(package) - (node.level - 1)]]
            origin = ".".join(part for part in (*base, node.module) if part)
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        for name in names:
            below = name.removeprefix("s2video").removeprefix(".") if name.startswith("s2video") else None
            if below in FILES and below:
                found.add(below)
            elif below is None:
                found.add(name.split(".")[0])
    return found - {module}


IMPORTS = {module: imports_of(module) for module in FILES if module}
MODULES = [module for module in IMPORTS if FILES[module].name != "__init__.py"]


def folder(module: str) -> str:
    return module.split(".")[0]


def test_every_folder_has_a_floor() -> None:
    assert {folder(module) for module in IMPORTS} == set(FLOORS)


def test_the_reader_of_imports_sees_them() -> None:
    """Lazy, relative and absolute imports are found; otherwise the next tests would always pass."""
    assert "guidance.masks" in IMPORTS["config.guidance"]
    assert {"errors", "torch"} <= IMPORTS["models.loading"]
    assert {"engine.engine", "models.limits", "parallel.mesh"} <= IMPORTS["cli.generate"]
    assert "decoding.kinds" in IMPORTS["models.wan.family"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    ours = {name for name in IMPORTS[module] if name in FILES}
    assert {name for name in ours if FLOORS.index(folder(name)) > FLOORS.index(folder(module))} == set()
    assert {(folder(module), folder(name)) for name in ours} & NEVER == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    reached = {module: {name for name in names if name in FILES} for module, names in IMPORTS.items()}
    for _ in reached:
        for names in reached.values():
            names |= set().union(*(reached[name] for name in names))
    assert [module for module, names in reached.items() if module in names] == []


@pytest.mark.parametrize("module", [m for m in MODULES if m in LIGHT or folder(m) in LIGHT])
def test_light_modules_come_without_torch(module: str) -> None:
    if folder(module) == "config" or module in ("errors", "system.ranks", "guidance.masks"):
        assert not IMPORTS[module] & HEAVY
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    at_import = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_import for alias in node.names} | {getattr(n, "module", None) for n in at_import}
    assert not {str(name).split(".")[0] for name in names} & HEAVY


def test_the_command_line_is_ready_without_torch() -> None:
    code = "import s2video.cli.main, sys; print(sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert finished.stdout.strip() == "[]", finished.stdout + finished.stderr


def test_every_module_says_what_it_does() -> None:
    texts = {module: path.read_text(encoding="utf-8") for module, path in FILES.items()}
    assert [m for m, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))] == []


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["mypy"]], ids=lambda tool: tool[0])
def test_linters_are_content(tool: list[str]) -> None:
    finished = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stdout + finished.stderr

"""The house stands as drawn: imports go down, the public face stays, the linters are content."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import s2video

ROOT = Path(s2video.__file__).resolve().parents[1]
PACKAGE = ROOT / "s2video"

# A module imports from its own floor and from those below it.
FLOORS: dict[int, list[str]] = {
    0: [
        *("errors", "ending", "files", "locks", "config", "config_text", "guidance", "rivals", "masks", "geometry"),
        *("cards", "costs", "timecode", "formats", "colour", "naming", "shots", "batch_config", "version"),
        *("sidecar_model",),
    ],
    1: [f"parallel.{name}" for name in ("watch", "mesh", "traffic", "collectives", "ring", "attention")]
    + [f"parallel.{name}" for name in ("agreement", "weights", "zero3", "halo", "lead")],
    2: [f"models.{name}" for name in ("base", "tokens", "family", "wan_family", "hunyuan_family", "families")]
    + [f"models.{name}" for name in ("wan", "hunyuan_video", "text", "images", "image_encoder", "experts", "loading")]
    + ["models.lora"]
    + [f"models.{name}" for name in ("hunyuan15_family", "hunyuan_video15")]
    + [f"models.{name}" for name in ("parts", "vae", "vae_sharded", "vae_tiled", "decoder")],
    3: [
        "job",
        "forward",
        "denoising",
        "sampler",
        "ffmpeg",
        "exr",
        "video",
        "video_queue",
        "progress",
        "sidecar",
        "checkpoint",
        "forecast",
        "identity",
        "gpu_room",
        "captions",
        "compare",
        "sheet",
    ],
    4: [f"integrations.{name}" for name in ("blocks", "pipelines", "guider")]
    + ["pipeline", "production", "saved_latents", "requests", "plan", "selftest", "launcher", "cli", "__main__"]
    + ["batch", "batch_store", "heartbeat", "batch_plan", "batch_status", "replicas", "cli_batch"]
    + ["describe", "reproduce", "page", "cli_review", "api"],
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
PACKAGES = {"", "parallel", "models", "integrations"}  # their __init__ holds nothing but the version and docstrings


def module_files() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(module: str, path: Path) -> set[str]:
    """The modules of s2video that a file imports, anywhere in it, as names below s2video."""
    known = set(module_files())
    package = [] if module in PACKAGES and not module else module.split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ["s2video", *package[: len(package) - (node.level - 1)]]
                origin = ".".join([*base, *([node.module] if node.module else [])])
            else:
                origin = node.module or ""
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        for name in names:
            if name == "s2video" or name.startswith("s2video."):
                below = name.removeprefix("s2video").removeprefix(".")
                if below in known:
                    found.add(below)
    return found - {module}


IMPORTS = {module: imported_modules(module, path) for module, path in module_files().items()}


def test_every_module_has_a_floor() -> None:
    assert set(IMPORTS) - PACKAGES == set(FLOOR_OF)


def test_the_reader_of_imports_sees_them() -> None:
    """Lazy, relative and absolute ones; else the next tests would pass on anything."""
    assert "masks" in IMPORTS["config"]
    assert "errors" in IMPORTS["models.loading"]
    assert {"pipeline", "requests", "parallel.mesh"} <= IMPORTS["cli"]
    assert any("errors" in IMPORTS[module] for module in ("video", "ffmpeg"))


@pytest.mark.parametrize("module", sorted(FLOOR_OF))
def test_imports_go_down(module: str) -> None:
    upward = {name for name in IMPORTS[module] - PACKAGES if FLOOR_OF[name] > FLOOR_OF[module]}
    assert upward == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    reached = {module: set(names) for module, names in IMPORTS.items()}
    for _ in reached:
        for names in reached.values():
            names |= set().union(*(reached[name] for name in names))
    assert [module for module, names in reached.items() if module in names] == []


def test_the_public_face() -> None:
    assert sorted(s2video.__all__) == ["S2Guidance", "__version__", "disable", "enable", "load"]


def test_every_module_says_what_it_does() -> None:
    silent = [
        module
        for module, path in module_files().items()
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["mypy"]], ids=lambda tool: tool[0])
def test_linters_are_content(tool: list[str]) -> None:
    finished = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stdout + finished.stderr

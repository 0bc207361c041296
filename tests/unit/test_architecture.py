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
NAMES = {
    0: """
        config config_text ending errors files geometry guidance masks rivals settings version batch.config batch.locks
        batch.shots media.colour media.formats media.naming media.timecode planning.cards planning.costs
        planning.costs_wan planning.costs_hunyuan planning.work records.sidecar_model
    """,
    1: """
        parallel.agreement parallel.attention parallel.collectives parallel.halo parallel.lead parallel.mesh
        parallel.ring parallel.traffic parallel.watch parallel.weights parallel.zero3
    """,
    2: """
        models.base models.decoder models.experts models.families models.family models.hunyuan15_family
        models.hunyuan_family models.hunyuan_video models.hunyuan_video15 models.image_encoder models.images
        models.loading models.lora models.parts models.text models.tokens models.vae models.vae_sharded
        models.vae_tiled models.wan models.wan_family
    """,
    3: """
        denoising forward job progress sampler batch.gpu_room media.captions media.compare media.exr media.ffmpeg
        media.sheet media.video media.video_queue planning.forecast records.checkpoint records.identity
        records.sidecar
    """,
    4: """
        __main__ api cli cli_batch cli_review launcher pipeline production requests selftest batch.heartbeat
        batch.plan batch.replica batch.replicas batch.status batch.store integrations.blocks integrations.guider
        integrations.pipelines planning.plan records.describe records.page records.reproduce records.saved_latents
    """,
}
FLOOR_OF = {module: floor for floor, names in NAMES.items() for module in names.split()}
PACKAGES = {
    "",
    "parallel",
    "models",
    "media",
    "records",
    "planning",
    "batch",
    "integrations",
}  # their __init__ holds nothing but the version and docstrings


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
    assert "masks" in IMPORTS["settings"]
    assert "errors" in IMPORTS["models.loading"]
    assert {"pipeline", "requests", "parallel.mesh"} <= IMPORTS["cli"]
    assert any("errors" in IMPORTS[module] for module in ("media.video", "media.ffmpeg"))


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

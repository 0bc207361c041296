"""The built wheel, alone in a fresh environment and outside the checkout, finds its model and makes videos."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ("s2video/assets/shapes-wan", "s2video/assets/shapes-wan-24")


def run(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    finished = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == expect, finished.stdout + finished.stderr
    return finished.stdout if expect == 0 else finished.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders behind, and would take up what earlier ones left."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "s2video", source / "s2video", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", source / "dist", ".", cwd=source)
    (built,) = (source / "dist").glob("s2video-*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and sees this one's packages as its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    binaries = folder / "bin"
    run(
        *(sys.executable, "-m", "pip", "--python", binaries / "python"),
        *("install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run(binaries / "python", "-c", "import s2video; print(s2video.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder)
    return binaries


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "configs" / "shapes.yaml", tmp_path))


def test_wheel_holds_the_package_the_model_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"s2video"}
    assert "s2video/py.typed" in names
    templates = {p.relative_to(ROOT).as_posix() for p in (ROOT / "s2video" / "review" / "templates").iterdir()}
    assert "s2video/review/templates/base.html" in templates <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for model in EMBEDDED:
        shipped = {name for name in names if name.startswith(f"{model}/")}
        present = {p.relative_to(ROOT).as_posix() for p in (ROOT / model).rglob("*") if p.is_file()}
        assert present and shipped == present


def test_version(bin_folder: Path, tmp_path: Path) -> None:
    assert run(bin_folder / "s2video", "--version", cwd=tmp_path).startswith("s2video 0.")


def test_bad_input(bin_folder: Path, config: Path, tmp_path: Path) -> None:
    error = run(bin_folder / "s2video", "generate", "--config", config, "--seed", "-1", cwd=tmp_path, expect=2)
    assert error.startswith("s2video: error: ") and error.count("\n") == 1


@pytest.mark.parametrize("command", [["generate"], ["launch", "--nproc", "2", "t2v"]], ids=["generate", "launch"])
def test_videos_are_made(bin_folder: Path, config: Path, tmp_path: Path, command: list[str]) -> None:
    out = run(
        *(bin_folder / "s2video", *command, "--config", config, "--seed", "3", "--output", "out/video.mp4"),
        *("--set", "sampling.num_inference_steps=3", "--set", "sampling.num_frames=5", "--keep-latents"),
        cwd=tmp_path,
    )
    assert out.strip() == "out/video.mp4"
    folder = tmp_path / "out"
    assert {p.name for p in folder.iterdir()} == {"video.mp4", "video.json", "video.latents.safetensors"}
    sidecar = json.loads((folder / "video.json").read_text(encoding="utf-8"))
    assert sidecar["seed"] == 3 and sidecar["mesh"]["world_size"] == (2 if "launch" in command else 1)

    page = run(bin_folder / "s2video", "page", folder, cwd=tmp_path)
    assert "data:video/mp4" in Path(page.strip()).read_text(encoding="utf-8")

    again = run(
        bin_folder / "s2video", "decode", folder / "video.latents.safetensors", "--output", "b.mp4", cwd=tmp_path
    )
    assert again.strip() == "b.mp4" and (tmp_path / "b.mp4").stat().st_size > 0

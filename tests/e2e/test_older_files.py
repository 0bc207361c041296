"""Files of an earlier version still inspect, decode, reproduce and resume; see tests/fixtures/0.1.0/README.md."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

from s2video.batch.records import SCHEMA_VERSION
from s2video.batch.store import Store
from s2video.cli.main import main
from s2video.media.video import read_video
from s2video.records.sidecar_model import read_sidecar

FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1.0"
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work on, as the current folder: paths in the files are relative."""
    folder = Path(shutil.copytree(FIXTURES, tmp_path / "old"))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["video/v.mp4", "sequence/s"])
def test_inspect(old: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", name]) == 0
    said = capsys.readouterr().out
    assert "unchanged (sha256" in said
    assert len(next(line for line in said.splitlines() if "block 1 " in line).split()[-1]) == 4  # steps


def test_decode_and_reproduce(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "video/v.latents.safetensors", "--output", "again.mp4"]) == 0
    assert torch.equal(read_video(Path("again.mp4")), read_video(Path("video/v.mp4")))
    assert main(["reproduce", "video/v.mp4", "--plain"]) == 0
    assert "reproduced" in capsys.readouterr().out


def test_a_video_that_is_made_is_kept(old: Path) -> None:
    sidecar = read_sidecar(Path("video/v.json"))
    sampling = [f"--set=sampling.{k}={v}" for k, v in sidecar.config.sampling if k != "seed" and v is not None]
    words = ["--config", str(CONFIGS / "shapes.yaml"), "--seed", str(sidecar.seed), "--prompt", sidecar.prompt]
    before = Path("video/v.mp4").stat().st_mtime_ns
    words += [*sampling, "--set=model.device=cpu", "--output", "video/v.mp4", "--keep-latents", "--resume", "--plain"]
    assert main(["generate", *words]) == 0
    kept = Path("video/v.mp4").stat().st_mtime_ns == before
    assert kept == (json.loads(Path("video/v.json").read_text())["weights"] == sidecar.weights)


def test_a_resume_point(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = Path("resume/args.txt").read_text().splitlines()
    arguments = [str(CONFIGS / "shapes.yaml") if word == "configs/shapes.yaml" else word for word in arguments]
    output = arguments[arguments.index("--output") + 1]
    shutil.copy("resume/r.checkpoint.safetensors", Path(output).with_suffix(".checkpoint.safetensors"))
    assert main([*arguments, "--resume"]) == 0
    assert "resuming after step 17" in capsys.readouterr().err
    assert read_sidecar(Path(output).with_suffix(".json")).resumed_after_step == 17


def test_a_config(old: Path) -> None:
    assert main(["generate", "--config", "config.yaml", "--plain"]) == 0
    sidecar = read_sidecar(Path("c.json"))
    assert (sidecar.seed, sidecar.mask_seed, sidecar.config.output.crf) == (11, 7, 20)


def test_a_batch_goes_on(old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(old / "batch")
    before = Path("run/first_s0.mp4").read_bytes(), Path("run/first_s0.mp4").stat().st_mtime_ns
    assert main(["status", "run"]) == 0
    assert "1 of 3 done" in capsys.readouterr().out
    monkeypatch.setattr("s2video.cli.batch._is_rank", lambda: True)
    assert main(["batch", "run.yaml", "--plain"]) == 0
    assert {record.state for record in Store(Path("run")).records()} == {"done"}
    assert (Path("run/first_s0.mp4").read_bytes(), Path("run/first_s0.mp4").stat().st_mtime_ns) == before
    assert read_sidecar(Path("run/second_s0.json")).resumed_after_step is not None
    with sqlite3.connect("run/batch.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_batch_of_a_newer_version_is_refused(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect("batch/run/batch.sqlite") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for words in (["status", "batch/run"], ["batch", "batch/run.yaml", "--set", "folder=batch/run"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert sum("expected a batch of schema" in line for line in said.splitlines()) == 1
        assert said.count("error") == 1

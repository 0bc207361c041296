"""The scripts of examples/ do what they say, in two steps instead of thirty."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from s2video.media.video import probe_video
from s2video.records.sidecar_model import videos_in

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: Any) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*arguments, steps=2)


def test_one_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("one_video.py", tmp_path)
    info = probe_video(tmp_path / "circle.mov")
    assert (info.num_frames, info.width) == (17, 64)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "circle.mov")


def test_sweep(tmp_path: Path) -> None:
    run("sweep.py", tmp_path)
    made = videos_in(tmp_path)
    assert [video.sidecar.config.guidance.s2_scale for video in made] == [0.0, 0.25, 0.5]
    assert len({video.sidecar.latents.sha256 for video in made}) == 3
    assert (tmp_path / "index.html").is_file()


def test_stream(capsys: pytest.CaptureFixture[str]) -> None:
    run("stream.py")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["step 1 of 2", "step 2 of 2"]
    assert [line.partition(",")[0] for line in lines[2:-1]] == ["1 frames", *["4 frames"] * 4]
    assert lines[-1] == "stopped on request after step 1 of 2"


def test_every_example_is_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'run("{path.name}"' in source for path in EXAMPLES.glob("*.py"))

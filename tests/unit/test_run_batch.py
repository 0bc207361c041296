"""Batches from Python: made like those of the command line, with results, and lines in the logger `s2video`."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import s2video
from s2video.batch import run as batch_run
from s2video.cli.main import main
from s2video.config.yaml_reader import parse_yaml

SMALL = {"num_frames": 1, "num_inference_steps": 1}


def content(folder: Path, **more: Any) -> dict[str, Any]:
    shots = [{"shot": "good", "prompt": "a red circle"}, {"shot": "bad", "prompt": "x", "guidance.cfg_scale": 1e300}]
    output = {"codec": "prores", "also": ["{name}_proxy.mp4"]}
    settings = {"sampling": SMALL, "model": {"device": "cpu"}, "output": output}
    return {"folder": folder, "shots": shots, **settings, **more}


def test_shots_in_memory_are_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """And a batch that was refused afterwards changes nothing."""
    with caplog.at_level(logging.INFO, "s2video"):
        good, bad = s2video.run_batch(content(tmp_path / "out"))
    assert (good.state, bad.state, good.error) == ("done", "failed", None)
    assert good.path == tmp_path / "out" / "good_s0.mov" and "NaN" in str(bad.error)
    names = ["good_s0.json", "good_s0.mov", "good_s0_proxy.mp4", "good_s0_proxy.mp4.json"]
    assert [path.name for path in good.files] == names and all(path.is_file() for path in good.files)
    assert main(["inspect", str(tmp_path / "out" / "good_s0_proxy.mp4")]) == 0
    levels = {record.message: record.levelno for record in caplog.records}
    assert any("2 of 2 videos to make" in message for message in levels) and logging.ERROR in levels.values()
    assert any("good_s0: step 1/1" in message for message in levels)
    capfd.readouterr()

    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    first = json.loads(capfd.readouterr().out)["jobs"][0]
    assert sorted(first["files"]) == names

    before = (tmp_path / "out" / batch_run.RUN_FILE).read_bytes()
    changed = content(tmp_path / "out", guidance={"s2_scale": 0.5})
    with pytest.raises(s2video.InputError, match=r"good_s0\.mov was made from other settings"):
        s2video.run_batch(changed)
    assert (tmp_path / "out" / batch_run.RUN_FILE).read_bytes() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"folder": None}, {}, "expected a path, or a mapping with at least the keys folder and shots"),
        ({"shots": []}, {}, "expected a path, or a mapping"),
        ({"shots": "none.csv"}, {}, r"none\.csv"),
        ({"sampling": {"steps": 3}}, {}, "unknown key 'sampling.steps'"),
        ({"sampling": object()}, {}, "expected values that YAML can hold"),
        ({}, {"settings": {"sampling.steps": 3}}, "unknown key 'sampling.steps'"),
        ({}, {"only": ["goof"]}, "did you mean 'good'"),
        ({}, {"again": ["all"]}, "again: expected some of force, retry-failed"),
    ],
)
def test_what_cannot_be_used_leaves_nothing(
    changes: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(s2video.InputError, match=message):
        s2video.run_batch({**content(tmp_path / "out"), **changes}, **options)
    assert not (tmp_path / "out").exists()


def test_text_reaches_a_run_file_as_it_is() -> None:
    text = "a\x7f\x85\u2028b \\u0041 é 😀"
    assert parse_yaml(batch_run._as_yaml({"prompt": text}, "here"), "here") == {"prompt": text}


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("raise SystemExit(129)", s2video.StoppedError),
        ("raise SystemExit(130)", KeyboardInterrupt),
        ("print('s2video: error: every replica exited', file=sys.stderr); raise SystemExit(1)", s2video.S2VideoError),
        ("print('s2video: error: a\\x1b[2J', file=sys.stderr); raise SystemExit(2)", s2video.InputError),
    ],
)
def test_the_end_of_the_batch_is_an_error_here(
    script: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = batch_run._run
    monkeypatch.setattr(batch_run, "_run", lambda command: played([command[0], "-c", f"import sys; {script}"]))
    with pytest.raises(error) as caught:
        s2video.run_batch(content(tmp_path / "out"))
    if error is s2video.StoppedError:
        assert caught.value.signal == 1  # type: ignore[attr-defined]

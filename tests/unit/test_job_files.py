"""The files of a job while it is made: claimed, not replaced if another program writes them, and none left over."""

import os
from pathlib import Path
from typing import Any

import pytest

import s2video
from s2video.api import TextToVideo
from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.engine.make_video import denoise, finish, make_video
from s2video.errors import InputError, S2VideoError
from s2video.records.integrity import problems
from s2video.records.sidecar import load_latents
from s2video.records.sidecar_model import read_sidecar


@pytest.fixture(scope="module")
def engine() -> Engine:
    loaded = s2video.load("shapes-wan", sampling={"num_frames": 1, "num_inference_steps": 1}, **{"model.device": "cpu"})
    assert isinstance(loaded, TextToVideo)
    return loaded._engine


def job(engine: Engine, folder: Path, **changes: Any) -> RunConfig:
    named = {"prompt": "a red circle", "sampling.seed": 1, "output.path": str(folder / "x.mp4")}
    return engine.config.patched(named | changes)


def test_what_a_killed_run_has_left_is_removed_with_resume(engine: Engine, tmp_path: Path) -> None:
    """It was killed when the video was complete, and before it removed latents and resume point."""
    wanted = job(engine, tmp_path)
    denoised = denoise(engine, wanted)
    assert denoised is not None
    latents, point = tmp_path / "x.latents.safetensors", tmp_path / "x.checkpoint.safetensors"
    unlink, left = Path.unlink, {}

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path == latents:
            left[path] = path.read_bytes()
        unlink(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        finish(denoised)
    latents.write_bytes(left[latents])
    point.write_bytes(b"of this job")
    made = (tmp_path / "x.mp4").stat().st_mtime_ns
    assert make_video(engine, wanted, resume=True) == tmp_path / "x.mp4"
    assert (tmp_path / "x.mp4").stat().st_mtime_ns == made
    assert sorted(os.listdir(tmp_path)) == ["x.json", "x.mp4"]


def test_kept_latents_are_replaced_by_those_of_the_new_video(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "x.latents.safetensors"
    make_video(engine, job(engine, tmp_path, **{"output.keep_latents": True}))
    make_video(engine, job(engine, tmp_path, **{"output.keep_latents": True}), resume=True)
    before = load_latents(kept).latents
    for seed in (2, 3):  # the second one finds latents that were kept only because older ones were
        make_video(engine, job(engine, tmp_path, **{"sampling.seed": seed}))
        assert f"{kept} was kept by an earlier run, so the latents of this run are kept" in capsys.readouterr().err
        sidecar = read_sidecar(tmp_path / "x.json")
        assert sidecar.seed == seed and not list(problems(tmp_path / "x.json", sidecar, tmp_path / "x.mp4"))
    assert not load_latents(kept).latents.equal(before)


def test_a_file_that_appears_meanwhile_is_not_replaced(engine: Engine, tmp_path: Path) -> None:
    denoised = denoise(engine, job(engine, tmp_path))
    assert denoised is not None
    (tmp_path / "x.mp4").write_bytes(b"mine")
    with pytest.raises(S2VideoError, match=r"x\.mp4: another program wrote this file .*; s2video decode .*x\.latents"):
        finish(denoised)
    assert (tmp_path / "x.mp4").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["x.latents.safetensors", "x.mp4"]


def test_one_job_of_a_name_at_a_time(engine: Engine, tmp_path: Path) -> None:
    denoised = denoise(engine, job(engine, tmp_path))
    assert denoised is not None
    with pytest.raises(InputError, match="is making this video"):
        denoise(engine, job(engine, tmp_path, **{"sampling.seed": 2}))
    finish(denoised)
    assert sorted(os.listdir(tmp_path)) == ["x.json", "x.mp4"]

    def broken(done: int, total: int) -> None:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        denoise(engine, job(engine, tmp_path, **{"sampling.seed": 2}), on_step=broken)
    make_video(engine, job(engine, tmp_path, **{"sampling.seed": 2}))

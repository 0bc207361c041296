"""Tests of resume points on one rank: restored bitwise, and only for the same job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from s2video.errors import InputError, S2VideoError, StoppedError
from s2video.parallel.mesh import Mesh
from s2video.records.resume import ResumePoint
from s2video.sampling.sampler import sample

NUM_STEPS = 8
STATEMENT = {"prompt": ["a"], "guidance.s2_scale": 0.25}
NOISE = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def unipc() -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def euler() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


class Guidance:
    """A guidance with state between steps."""

    def __init__(self) -> None:
        self.average: Any = 0.0

    def state(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.average = state.get("average", 0.0)


def run(
    scheduler: Any,
    path: Path,
    *,
    stop_after: int | None = None,
    statement: dict[str, Any] = STATEMENT,
    weights: dict[str, str] | None = None,
    **settings: Any,
) -> Tensor:
    scheduler.set_timesteps(NUM_STEPS)
    scheduler.set_begin_index(0)
    point = ResumePoint(path, Mesh(torch.device("cpu")), lambda: weights or {"a": "1"}, **settings)
    latents, first = point.begin(statement, scheduler, NOISE)
    guidance = Guidance()
    point.restore(guidance)

    def denoise(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        guidance.average = 0.5 * guidance.average + latents
        return torch.sin(latents * (step + 1)) + guidance.average

    def on_step(done: int, total: int, latents: Tensor) -> None:
        point.step_done(done, total, latents, scheduler, guidance, stops=done == stop_after)

    return sample(denoise, latents, scheduler, first_step=first, on_step=on_step)


@pytest.mark.parametrize("make", [unipc, euler])
@pytest.mark.parametrize("step", [1, 2, 5, NUM_STEPS])
def test_an_interrupted_run_ends_bitwise_where_a_whole_one_does(make: Any, step: int, tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    whole = run(make(), path)
    assert not path.exists()
    with pytest.raises(StoppedError, match=rf"after step {step} of {NUM_STEPS}: .*x.checkpoint.safetensors.*--resume"):
        run(make(), path, stop_after=step)
    assert torch.equal(run(make(), path, resume=True), whole)


def test_periodic_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resume points are written at every step on request, and always before decoding."""
    path = tmp_path / "x.checkpoint.safetensors"
    whole = run(unipc(), path, every_seconds=3600.0)
    assert torch.equal(run(unipc(), path, resume=True), whole)
    assert f"after step {NUM_STEPS}" in capsys.readouterr().err
    with pytest.raises(StoppedError):
        run(unipc(), path, every_seconds=1e-9, stop_after=4)
    assert torch.equal(run(unipc(), path, resume=True), whole)


def test_without_a_file_the_job_starts_at_the_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    assert torch.equal(run(unipc(), path, resume=True), run(unipc(), path))
    assert f"no resume point {path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "weights", "named"),
    [
        ({"guidance.s2_scale": 0.3}, None, "guidance.s2_scale was 0.25, now it is 0.3"),
        ({"prompt": ["b"]}, None, r'prompt was \["a"\], now it is \["b"\]'),
        ({"new": 1}, None, "new was null, now it is 1"),
        ({}, {"a": "2"}, 'weights of a was "1", now it is "2"'),
    ],
)
def test_another_job_is_not_taken_up(
    changed: dict[str, Any], weights: dict[str, str] | None, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(StoppedError):
        run(unipc(), path, stop_after=3)
    with pytest.raises(InputError, match=named):
        run(unipc(), path, statement=STATEMENT | changed, weights=weights, resume=True)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_damaged_checkpoint_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(StoppedError):
        run(euler(), path, stop_after=3)
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    with pytest.raises(InputError, match="expected a resume point of s2video"):
        run(euler(), path, resume=True)


def test_a_state_that_cannot_be_stored_is_refused_after_the_first_step(tmp_path: Path) -> None:
    class Odd(FlowMatchEulerDiscreteScheduler):
        def step(self, *arguments: Any, **more: Any) -> Any:
            self.memory = {1, 2}
            return super().step(*arguments, **more)

    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(S2VideoError, match="got memory of type set"):
        run(Odd(), path, every_seconds=3600.0)
    with pytest.raises(StoppedError, match=r"it could not be saved .*got memory of type set"):
        run(Odd(), path, stop_after=3)
    run(Odd(), path)
    assert not path.exists()


def test_a_checkpoint_that_cannot_be_written_is_no_reason_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "x.checkpoint.safetensors"
    assert torch.equal(run(unipc(), path, every_seconds=1e-9), run(unipc(), path))
    assert capsys.readouterr().err.count("no resume point after step") == NUM_STEPS

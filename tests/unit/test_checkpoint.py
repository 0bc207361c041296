"""Checkpoints on one rank: what comes back is what was saved, bitwise, and only for the same job."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from s2video.errors import InputError, S2VideoError, StoppedError
from s2video.parallel.mesh import Mesh
from s2video.records.checkpoint import Checkpoints
from s2video.sampling.sampler import sample

NUM_STEPS = 8
STATEMENT = {"prompt": ["a"], "guidance.s2_scale": 0.25, "parallel.ring": 1, "versions": {"torch": "2"}}
NOISE = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def unipc() -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def euler() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def denoise(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
    return torch.sin(latents * (step + 1)) + latents


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
    checkpoints = Checkpoints(path, Mesh(torch.device("cpu")), lambda: weights or {"a": "1"}, **settings)
    latents, first = checkpoints.begin(statement, scheduler, NOISE)

    def on_step(done: int, total: int, latents: Tensor) -> None:
        checkpoints.step_done(done, total, latents, scheduler, stops=done == stop_after)

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
    """At every step where so asked; at least when only decoding is left."""
    path = tmp_path / "x.checkpoint.safetensors"
    whole = run(unipc(), path, every_seconds=3600.0)
    assert torch.equal(run(unipc(), path, resume=True), whole)
    assert f"after step {NUM_STEPS}" in capsys.readouterr().err
    with pytest.raises(StoppedError):
        run(unipc(), path, every_seconds=1e-9, stop_after=4)
    assert torch.equal(run(unipc(), path, resume=True), whole)


def test_without_a_checkpoint_the_job_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    assert torch.equal(run(unipc(), path, resume=True), run(unipc(), path))
    assert f"there is no {path}" in capsys.readouterr().err


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


def test_ranks_and_versions_may_change(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(StoppedError):
        run(euler(), path, stop_after=3)
    changed = STATEMENT | {"parallel.ring": 2, "versions": {"torch": "3"}}
    assert torch.equal(run(euler(), path, statement=changed, resume=True), run(euler(), path))


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_damaged_checkpoint_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(StoppedError):
        run(euler(), path, stop_after=3)
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    with pytest.raises(InputError, match="is no checkpoint of s2video"):
        run(euler(), path, resume=True)


def test_a_state_that_cannot_be_stored_is_refused_after_the_first_step(tmp_path: Path) -> None:
    class Odd(FlowMatchEulerDiscreteScheduler):
        def step(self, *arguments: Any, **more: Any) -> Any:
            self.memory = {1, 2}
            return super().step(*arguments, **more)

    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(S2VideoError, match="memory is of type set"):
        run(Odd(), path, every_seconds=3600.0)
    with pytest.raises(StoppedError, match=r"no checkpoint could be written .*memory is of type set"):
        run(Odd(), path, stop_after=3)
    run(Odd(), path)
    assert not path.exists()


def test_a_checkpoint_that_cannot_be_written_is_no_reason_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "x.checkpoint.safetensors"
    assert torch.equal(run(unipc(), path, every_seconds=1e-9), run(unipc(), path))
    assert capsys.readouterr().err.count("no checkpoint after step") == NUM_STEPS

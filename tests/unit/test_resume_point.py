"""Tests of resume points on one rank: restored bitwise, and only for the same job."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, UniPCMultistepScheduler
from safetensors import safe_open
from torch import Tensor

from s2video.errors import InputError, S2VideoError, StoppedError
from s2video.models.schedulers import step_noise
from s2video.parallel.mesh import Mesh
from s2video.records import resume_file
from s2video.records.resume import ResumePoint
from s2video.records.sidecar import write_tensors
from s2video.records.sidecar_model import METADATA_KEY
from s2video.sampling.sampler import sample

NUM_STEPS = 8
STATEMENT = {"prompt": ["a"], "guidance.s2_scale": 0.25}
NOISE = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def unipc() -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def euler() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def lcm() -> Any:
    """Adds noise in each step."""
    return FlowMatchLCMScheduler(shift=3.0)


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

    return sample(denoise, latents, scheduler, first_step=first, on_step=on_step, noise=step_noise(scheduler, [3]))


@pytest.mark.parametrize("make", [unipc, euler, lcm])
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


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any], *, sealed: bool) -> None:
    """Change header or tensors of a file; `sealed` gives it the digest of its new content."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in facts["tensors"]}
    del facts["digest"]
    change(facts, tensors)
    digest = resume_file._digest(facts, tensors) if sealed else "0" * 64
    write_tensors(path, tensors, facts | {"digest": digest})


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("place", [-1, -40, -800])
def test_flipped_bits_are_found(bit: int, place: int, tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(StoppedError):
        run(unipc(), path, stop_after=3)
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(InputError, match="changed since it was written"):
        run(unipc(), path, resume=True)


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Any]] = {
    "step 3": lambda facts, tensors: facts.update(step=3),
    "step -1": lambda facts, tensors: facts.update(step=-1),
    "step 0": lambda facts, tensors: facts.update(step=0),
    "step 10**9": lambda facts, tensors: facts.update(step=10**9),
    "step true": lambda facts, tensors: facts.update(step=True),
    "step text": lambda facts, tensors: facts.update(step="2"),
    "no step": lambda facts, tensors: facts.pop("step"),
    "scheduler attribute": lambda facts, tensors: facts["scheduler"].update(colour=1),
    "scheduler config": lambda facts, tensors: facts["scheduler"].update(_internal_dict=None),
    "scheduler method": lambda facts, tensors: facts["scheduler"].update(step=1),
    "scheduler dunder": lambda facts, tensors: facts["scheduler"].update(__class__="int"),
    "scheduler type": lambda facts, tensors: facts["scheduler"].update(timesteps="x"),
    "scheduler list": lambda facts, tensors: facts["scheduler"].update(model_outputs=1),
    "scheduler list of words": lambda facts, tensors: facts["scheduler"].update(model_outputs={"list": ["x", "y"]}),
    "scheduler list without places": lambda facts, tensors: facts["scheduler"].update(model_outputs={"list": []}),
    "scheduler number": lambda facts, tensors: facts["scheduler"].update(last_sample=1),
    "scheduler short list": lambda facts, tensors: facts["scheduler"].update(timestep_list={"list": ["x"]}),
    "scheduler nonsense": lambda facts, tensors: facts["scheduler"].update(_step_index={"x": 1}),
    "scheduler no mapping": lambda facts, tensors: facts.update(scheduler=[]),
    "statement no mapping": lambda facts, tensors: facts.update(statement=5),
    "statement": lambda facts, tensors: facts["statement"].update(prompt=["b"]),
    "no statement": lambda facts, tensors: facts.pop("statement"),
    "latents shape": lambda facts, tensors: tensors.update(latents=tensors["latents"][:, :2].contiguous()),
    "latents type": lambda facts, tensors: tensors.update(latents=tensors["latents"].double()),
    "latents nan": lambda facts, tensors: tensors["latents"].view(-1).__setitem__(0, float("nan")),
    "latents missing": lambda facts, tensors: [tensors.pop("latents"), facts["tensors"].remove("latents")],
    "tensor not named": lambda facts, tensors: tensors.update(more=torch.zeros(2)),
    "tensors no list": lambda facts, tensors: facts.update(tensors=3),
    "guidance": lambda facts, tensors: facts.update(guidance={"average": {"tensor": "none"}}),
    "guidance no mapping": lambda facts, tensors: facts.update(guidance="x"),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_checkpoint_is_one_line(
    change: str, sealed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even with a digest that is right, a file cannot ask for what a run of the job cannot have."""
    path = tmp_path / "x.checkpoint.safetensors"
    with pytest.raises(StoppedError):
        run(unipc(), path, stop_after=2)
    rewritten(path, CHANGES[change], sealed=sealed)
    with pytest.raises(InputError) as caught:
        run(unipc(), path, resume=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    if "statement" not in change or not sealed:  # the batch says so and makes the video from the beginning
        whole = run(unipc(), tmp_path / "whole")
        assert torch.equal(run(unipc(), path, resume=True, afresh_if_damaged=True), whole)
        assert "starting with the first step" in capsys.readouterr().err


def test_a_checkpoint_of_version_0_1_0_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    whole = run(unipc(), path)
    with pytest.raises(StoppedError):
        run(unipc(), path, stop_after=2)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in facts["tensors"]}
    del facts["digest"]
    write_tensors(path, tensors, facts)
    assert torch.equal(run(unipc(), path, resume=True), whole)


def test_another_settings_file_is_another_job(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    files = {"a": "1", "model_index.json": "1", "transformer/config.json": "1"}
    with pytest.raises(StoppedError):
        run(unipc(), path, stop_after=2, weights=files)
    with pytest.raises(InputError, match=r"weights of transformer/config.json was"):
        run(unipc(), path, weights=files | {"transformer/config.json": "2"}, resume=True)


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

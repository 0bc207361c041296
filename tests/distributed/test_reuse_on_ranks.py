"""Tests of reuse and s2_push in runs: 1, 2 and 3 ranks agree, resuming is bitwise, and the sidecar records them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, laid_out
from test_resume import TermAtStep, on
from tiny import PROMPT, job, tiny_config
from tiny_wan22 import a14b_config

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.engine.make_video import make_video
from s2video.errors import StoppedError
from s2video.parallel.mesh import Mesh
from s2video.probe.measure import probe
from s2video.records.resume import ResumePoint
from s2video.records.sidecar_model import read_sidecar
from s2video.review.inspect import describe

Ranks = Callable[[int], RankPool]
STEPS = 16
PUSH = {"s2_push": 0.2, "num_draws": 2}


def thinned(checkpoint: Path, make: Callable[..., RunConfig] = tiny_config, **guidance: Any) -> RunConfig:
    return make(checkpoint, **guidance).patched({"sampling.num_inference_steps": STEPS, "sampling.num_frames": 5})


def sample(mesh: Mesh | None, config: RunConfig, degrees: Any = None) -> tuple[torch.Tensor, Any]:
    engine = Engine(config, mesh if mesh is None or degrees is None else laid_out(mesh, *degrees), progress="none")
    latents = engine.sample([PROMPT], [3])
    return latents, engine.s2_scales


@pytest.mark.parametrize(
    ("degrees", "weights", "guidance"),
    [
        ((1, 2, 1), "fsdp", {"reuse": "fast"}),
        ((1, 1, 2), "replicated", {"reuse": "light", **PUSH}),
        ((2, 1, 1), "streamed", {"reuse": "deviation", "batch_branches": True}),
        ((1, 1, 2), "fsdp", {"reuse": "fast", "method": "slg", "slg": {"layers": [2], "start": 0.0, "stop": 0.7}}),
        ((3, 1, 1), "replicated", {"reuse": "fast", "cfg_scale": 1.0, **PUSH}),
    ],
    ids=["ulysses-fsdp", "branch-push", "ring-streamed", "branch-fsdp-slg", "three-without-uncond"],
)
def test_ranks_agree(
    ranks: Ranks, tiny_checkpoint: Path, degrees: tuple[int, int, int], weights: str, guidance: dict[str, Any]
) -> None:
    """Skipped passes are skipped on all ranks: no rank waits for another, and weights are fetched by all or none.

    With a branch axis, a step without uncond shares cond's tokens over all ranks.
    """
    config = thinned(tiny_checkpoint, **guidance)
    alone, scales = sample(None, config)
    spread = config.patched({"parallel.weights": weights})
    together = ranks(degrees[0] * degrees[1] * degrees[2]).run(sample, spread, degrees)
    for latents, found in together:
        assert torch.equal(latents, together[0][0]) and found == together[0][1]
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
    assert bool(scales) == ("s2_push" in guidance)
    assert [step for step, _ in scales] == [step for step, _ in together[0][1]]


def resumed(mesh: Mesh | None, config: RunConfig, step: int, path: Path) -> tuple[torch.Tensor, Any]:
    is_last = mesh is None or mesh.world.rank == mesh.world.size - 1
    first = Engine(config, mesh, progress="none", termination=TermAtStep(step) if is_last else None)
    with pytest.raises(StoppedError):
        first.sample([PROMPT], [3], resume_point=ResumePoint(path, first.mesh, first.digests.of_denoising))
    second = Engine(config, mesh, progress="none")
    point = ResumePoint(path, second.mesh, second.digests.of_denoising, resume=True)
    latents = second.sample([PROMPT], [3], resume_point=point)
    assert point.first_step == step
    return latents, second.s2_scales


@pytest.mark.parametrize(("world_size", "step"), [(1, 7), (2, 8)])
def test_resuming_is_bitwise(ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path, world_size: int, step: int) -> None:
    """After a step that computed and one that forecast; ω of the steps before the interruption is kept."""
    config = thinned(tiny_checkpoint, reuse="fast", **PUSH)
    expected, scales = on(ranks, world_size, sample, config)
    latents, found = on(ranks, world_size, resumed, config, step, tmp_path / "x.checkpoint.safetensors")
    assert torch.equal(latents, expected) and found == scales and len(scales) > 3


@pytest.mark.parametrize("step", [4, 5])
def test_two_transformers(checkpoint_of: Callable[[str], Path], tmp_path: Path, step: int) -> None:
    """Forecasts start again at the turn of the transformers, also if the run is interrupted there."""
    config = thinned(checkpoint_of("wan2.2-t2v"), a14b_config, reuse="light")
    engine = Engine(config, progress="none")
    masks = engine.mask_schedule([3])
    assert masks.restart == 5
    hows = [passes.uncond for passes in engine.passes(masks)]
    assert hows[3:9] == ["forecast", "computed", "computed", "computed", "forecast", "computed"]
    latents, _ = resumed(None, config, step, tmp_path / "x.checkpoint.safetensors")
    assert torch.equal(latents, sample(None, config)[0])


def test_the_sidecar_records_what_was_computed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = thinned(tiny_checkpoint, reuse="fast", **PUSH)
    engine = Engine(config, progress="none")
    assert make_video(engine, job(config, tmp_path / "clip.mp4")) == tmp_path / "clip.mp4"
    sidecar = read_sidecar(tmp_path / "clip.json")
    assert sidecar.computed is not None
    assert sidecar.computed.sub == (2, 4, 6) and sidecar.computed.cond == (0, 1, 2, 4, 6, 8, 10, 12, 14)
    assert [(mask.step, mask.draw) for mask in sidecar.masks] == [(s, d) for s in (2, 4, 6) for d in (0, 1)]
    assert [scale.step for scale in sidecar.s2_scales] == [2, 3, 4, 5, 6, 7]
    assert len({scale.s2_scale for scale in sidecar.s2_scales}) == 6
    said = describe(sidecar, tmp_path / "clip.mp4").splitlines()
    assert any(line.split() == ["sub", "··#·#·#·········", "3"] for line in said)
    assert any(line.startswith("s2_scale ") and " 2: " in line for line in said)


def probed(mesh: Mesh | None, config: RunConfig) -> Any:
    figures = probe(Engine(config, mesh, progress="none"), [PROMPT], points=1, draws=2, images=None)
    return None if figures is None else figures.as_json()


def test_a_probe_on_two_ranks(ranks: Ranks, tiny_checkpoint: Path) -> None:
    config = tiny_config(tiny_checkpoint).patched({"sampling.num_inference_steps": 4, "sampling.num_frames": 5})
    alone, (main, other) = probed(None, config), ranks(2).run(probed, config)
    assert other is None and main["steps"] == alone["steps"]
    for block, same in zip(main["blocks"], alone["blocks"], strict=True):
        assert block == pytest.approx(same, abs=1e-3)

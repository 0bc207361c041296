"""Tests of the engine on 1 to 4 ranks: all make the same video, and ranks that disagree stop."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankError, RankPool, laid_out
from tiny import PROMPT, tiny_config

from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def sample(mesh: Mesh | None, config: RunConfig, prompt: str = PROMPT, seed: int = 3) -> torch.Tensor:
    return Engine(config, mesh).sample([prompt], [seed])


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "guidance",
    [{}, {"s2_scale": 0.0}, {"num_draws": 2, "batch_branches": True}, {"cfg_scale": 1.0, "share_prefix": False}],
    ids=["s2", "cfg", "two-draws-batched", "no-uncond"],
)
def test_worlds_agree(ranks: Ranks, tiny_checkpoint: Path, world_size: int, guidance: dict[str, Any]) -> None:
    """175 tokens and 5 heads are not divisible by 2 or 3."""
    config = tiny_config(tiny_checkpoint, **guidance)
    alone = sample(None, config)
    together = ranks(world_size).run(sample, config)
    assert alone.shape == (1, 16, 5, 10, 14)
    for latents in together:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])


def sample_laid_out(mesh: Mesh, config: RunConfig, *degrees: Any) -> torch.Tensor:
    return sample(laid_out(mesh, *degrees), config)


@pytest.mark.parametrize(("ring", "ulysses"), [(2, 1), (3, 1), (2, 2)])
def test_rings_agree(ranks: Ranks, tiny_checkpoint: Path, ring: int, ulysses: int) -> None:
    config = tiny_config(tiny_checkpoint)
    alone = sample(None, config)
    together = ranks(ring * ulysses).run(sample_laid_out, config, ring, ulysses)
    for latents in together:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])


@pytest.mark.parametrize(("ring", "ulysses"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize(
    "guidance",
    [{}, {"s2_scale": 0.0}, {"num_draws": 2, "batch_branches": True}, {"share_prefix": False, "never_drop": ()}],
    ids=["s2", "cfg", "two-draws-batched", "forks-at-once"],
)
def test_branches_side_by_side_agree(
    ranks: Ranks, tiny_checkpoint: Path, ring: int, ulysses: int, guidance: dict[str, Any]
) -> None:
    """The first and the last of six steps are outside the window, so they have no sub branch to merge."""
    config = tiny_config(tiny_checkpoint, window=(0.2, 0.8), **guidance)
    alone = sample(None, config)
    together = ranks(2 * ring * ulysses).run(sample_laid_out, config, ring, ulysses, 2)
    for latents in together:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])


def disagree(mesh: Mesh, config: RunConfig, difference: str) -> None:
    prompt, seed = PROMPT, 3
    if mesh.world.rank == 1:
        if difference == "prompt":
            prompt = "a large blue square"
        elif difference == "seed":
            seed = 4
        else:
            section, field = difference.split(".")
            changed = {"drop_ratio": 0.5, "num_draws": 2, "s2_scale": 0.3, "num_inference_steps": 7}[field]
            values = config.model_dump(mode="json")
            values[section][field] = changed
            config = build_config(values)
    engine = Engine(config, mesh)
    start = time.monotonic()
    try:
        engine.sample([prompt], [seed])
    finally:
        assert time.monotonic() - start < 10, "ranks must not wait for each other where they can never agree"


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "difference",
    [
        "prompt",
        "seed",
        "guidance.drop_ratio",
        "guidance.num_draws",
        "guidance.s2_scale",
        "sampling.num_inference_steps",
    ],
)
def test_ranks_that_disagree_all_stop(ranks: Ranks, tiny_checkpoint: Path, world_size: int, difference: str) -> None:
    """All ranks stop at once, with one error that names the field and the ranks."""
    with pytest.raises(RankError) as caught:
        ranks(world_size).run(disagree, tiny_config(tiny_checkpoint), difference)
    assert caught.value.kinds == ["AgreementError"] * world_size
    assert len(set(caught.value.messages)) == 1
    message = caught.value.messages[0]
    assert message is not None and difference in message
    assert "rank 1:" in message and ("rank 0:" in message if world_size == 2 else "rank 0, 2:" in message)

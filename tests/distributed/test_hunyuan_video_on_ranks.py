"""Tests of HunyuanVideo on 1 to 4 ranks: joint attention and text in the blocks give the same video on every rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, laid_out
from tiny_hunyuan import IMAGES, PROMPT, tiny_config

from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.models.images import Images
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def sample(mesh: Mesh | None, config: RunConfig, images: Images | None, *degrees: Any) -> torch.Tensor:
    engine = Engine(config, None if mesh is None else laid_out(mesh, *degrees))
    return engine.sample([PROMPT, "blue"], [3, 4], negative_prompt="red, moving left", mask_seed=1, images=images)


@pytest.mark.parametrize(
    ("ring", "ulysses", "branch", "guidance"),
    [
        (1, 2, 1, {}),
        (2, 1, 1, {"cfg_scale": 3.0, "batch_branches": True}),
        (1, 1, 2, {"cfg_scale": 3.0, "num_draws": 2}),
        (1, 3, 1, {"cfg_scale": 3.0}),
        (2, 1, 2, {"cfg_scale": 3.0, "batch_branches": True}),
        (1, 2, 2, {"cfg_scale": 3.0, "share_prefix": False}),
    ],
    ids=["ulysses-2", "ring-2-batched", "branch-2", "ulysses-3", "ring-2-branch-2-batched", "ulysses-2-branch-2"],
)
def test_worlds_agree(
    ranks: Ranks, tiny_hunyuan_checkpoint: Path, ring: int, ulysses: int, branch: int, guidance: dict[str, Any]
) -> None:
    """175 tokens, 5 heads, and texts of four lengths."""
    check(ranks, tiny_config(tiny_hunyuan_checkpoint, **guidance), None, ring, ulysses, branch)


@pytest.mark.parametrize(
    ("ring", "ulysses", "branch", "guidance"),
    [
        (3, 1, 1, {"cfg_scale": 3.0, "batch_branches": True}),
        (1, 1, 2, {"cfg_scale": 3.0, "num_draws": 2}),
        (2, 1, 2, {"cfg_scale": 3.0}),
    ],
    ids=["ring-3-batched", "branch-2", "ring-2-branch-2"],
)
def test_the_given_frame_lies_where_it_may(
    ranks: Ranks, tiny_hunyuan_image_checkpoint: Path, ring: int, ulysses: int, branch: int, guidance: dict[str, Any]
) -> None:
    """The image's 35 of 70 tokens end inside the second of three shards, or exactly at half of the ranks."""
    values = tiny_config(tiny_hunyuan_image_checkpoint, **guidance).model_dump(mode="json")
    values["sampling"]["num_frames"] = 5
    check(ranks, build_config(values), IMAGES, ring, ulysses, branch)


def check(ranks: Ranks, config: RunConfig, images: Images | None, ring: int, ulysses: int, branch: int) -> None:
    alone = sample(None, config, images)
    together = ranks(ring * ulysses * branch).run(sample, config, images, ring, ulysses, branch)
    for latents in together:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])

"""Tests of HunyuanVideo 1.5 on 1 to 4 ranks: three kinds of text, of any length, give the same video on every rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, laid_out
from tiny_hunyuan15 import GLYPHS, IMAGES, tiny_config

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def sample(mesh: Mesh | None, config: RunConfig, has_image: bool, *degrees: Any) -> torch.Tensor:
    engine = Engine(config, None if mesh is None else laid_out(mesh, *degrees))
    images = IMAGES if has_image else None
    return engine.sample([GLYPHS, "blue"], [3, 4], negative_prompt="red", mask_seed=1, images=images)


@pytest.mark.parametrize(
    ("has_image", "ring", "ulysses", "branch", "guidance"),
    [
        (True, 2, 1, 1, {"batch_branches": True}),
        (True, 1, 1, 2, {"num_draws": 2}),
        (False, 3, 1, 1, {"share_prefix": False}),
        (False, 1, 2, 2, {"batch_branches": True}),
    ],
    ids=["image-ring-2-batched", "image-branch-2", "ring-3", "ulysses-2-branch-2"],
)
def test_worlds_agree(
    ranks: Ranks,
    request: pytest.FixtureRequest,
    has_image: bool,
    ring: int,
    ulysses: int,
    branch: int,
    guidance: dict[str, Any],
) -> None:
    """175 tokens, 5 heads, and texts of four lengths."""
    folder: Path = request.getfixturevalue(f"tiny_hunyuan15_{'image_' if has_image else ''}checkpoint")
    config = tiny_config(folder, **guidance)
    alone = sample(None, config, has_image)
    together = ranks(ring * ulysses * branch).run(sample, config, has_image, ring, ulysses, branch)
    for latents in together:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])

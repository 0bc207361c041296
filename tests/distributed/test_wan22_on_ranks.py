"""Tests of Wan 2.2 on 2 ranks: sharded or streamed weights of two transformers, and a timestep per token of a shard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from ranks import RankPool, laid_out

from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.models.images import Images
from s2video.parallel.mesh import Mesh


def sample(mesh: Mesh | None, config: RunConfig, images: Images | None, branch: Any = 1) -> torch.Tensor:
    if mesh is not None:
        mesh = laid_out(mesh, 1, 2 // branch, branch)
    return Engine(config, mesh).sample(["a small red circle"], [3], images=images)


@pytest.mark.parametrize(
    ("name", "weights", "branch"),
    [
        ("wan2.2-t2v", "fsdp", 1),
        ("wan2.2-t2v", "streamed", 2),
        ("wan2.2-ti2v, with an image", "fsdp", 2),
    ],
)
def test_weights_and_branches(
    ranks: Callable[[int], RankPool], checkpoint_of: Callable[[str], Path], name: str, weights: str, branch: int
) -> None:
    family = FAMILIES[name]
    values = family.config(checkpoint_of(name)).model_dump(mode="json")
    alone = sample(None, build_config(values), family.images)
    values["parallel"]["weights"] = weights
    together = ranks(2).run(sample, build_config(values), family.images, branch)
    for latents in together:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])


def test_a_rank_without_tokens(ranks: Callable[[int], RankPool], checkpoint_of: Callable[[str], Path]) -> None:
    name = "wan2.2-ti2v"
    values = FAMILIES[name].config(checkpoint_of(name)).model_dump(mode="json")
    values["sampling"] |= {"width": 32, "height": 32, "num_frames": 1}
    config = build_config(values)
    alone = sample(None, config, None)
    for latents in ranks(2).run(sample, config, None):
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)

"""Tests of other guidance methods on two ranks, by ulysses and branch: latents equal one rank's; momentum resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, laid_out
from test_resume import interrupted, on, resumed, whole
from tiny import PROMPT, tiny_config

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]
MOMENTUM = {"method": "apg", "apg": {"momentum": -0.5, "rescale": 2.0}}
SETTINGS: dict[str, dict[str, Any]] = {
    "cfg-zero-star": {"method": "cfg_zero_star"},
    "apg": MOMENTUM,
    "slg": {"method": "slg", "slg": {"layers": [2, 4], "start": 0.0, "stop": 0.7}},
}


def sample(mesh: Mesh | None, config: RunConfig, branch: Any = 1) -> torch.Tensor:
    mesh = mesh if mesh is None or branch == 1 else laid_out(mesh, 1, 1, 2)
    return Engine(config, mesh).sample([PROMPT], [3])


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_agree(ranks: Ranks, tiny_checkpoint: Path, name: str) -> None:
    config = tiny_config(tiny_checkpoint, **SETTINGS[name])
    alone = sample(None, config)
    for branch in (1, 2):
        together = ranks(2).run(sample, config, branch)
        assert torch.equal(*together)
        torch.testing.assert_close(together[0], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_momentum_is_taken_up_again(ranks: Ranks, tiny_checkpoint: Path, tmp_path: Path, world_size: int) -> None:
    config = tiny_config(tiny_checkpoint, **MOMENTUM)
    path = tmp_path / "clip.mp4"
    on(ranks, world_size, interrupted, config, False, 3, path)
    again = on(ranks, world_size, resumed, config, False, path)
    assert torch.equal(again, on(ranks, world_size, whole, config, False))

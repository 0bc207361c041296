"""A scheduler that adds noise, on two ranks: both add the same, which is that of one rank."""

from collections.abc import Callable
from pathlib import Path

import torch
from ranks import RankPool
from tiny import PROMPT, tiny_config

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh


def sample(mesh: Mesh | None, config: RunConfig) -> torch.Tensor:
    torch.manual_seed(0 if mesh is None else mesh.world.rank)
    return Engine(config, mesh).sample([PROMPT], [3])


def test_noise_of_the_steps_is_the_same_on_all_ranks(ranks: Callable[[int], RankPool], tiny_checkpoint: Path) -> None:
    changes = {"sampling.scheduler": "FlowMatchLCMScheduler", "sampling.num_inference_steps": 3}
    config = tiny_config(tiny_checkpoint).patched(changes)
    alone = sample(None, config)
    for latents in ranks(2).run(sample, config):
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)

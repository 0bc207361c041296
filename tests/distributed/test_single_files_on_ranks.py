"""Weights in files of other programs on two ranks: sharded weights are those of whole ones, and files are compared."""

from collections.abc import Callable
from pathlib import Path

import original_names as original
import pytest
import torch
from ranks import RankError, RankPool
from tiny import PROMPT, build_transformer, tiny_config

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def sample(mesh: Mesh | None, *configs: RunConfig) -> torch.Tensor:
    """Sample with config i on rank i; further ranks use the last config."""
    rank = 0 if mesh is None else mesh.world.rank
    return Engine(configs[min(rank, len(configs) - 1)], mesh).sample([PROMPT], [3])


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> RunConfig:
    state = original.fp8_scaled(original.wan_transformer(build_transformer().state_dict()), by_row=True)
    file = original.write(state, tmp_path / "x.safetensors", "diffusion_model.")
    changes = {"model.transformer": str(file), "sampling.num_inference_steps": 2}
    return tiny_config(tiny_checkpoint, window=[0, 1]).patched(changes)


def test_shards_of_a_scaled_file_are_those_of_the_whole(ranks: Ranks, config: RunConfig) -> None:
    alone = sample(None, config)
    for latents in ranks(2).run(sample, config.patched({"parallel.weights": "fsdp"})):
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)


def test_another_file_on_one_rank_stops_both(ranks: Ranks, config: RunConfig, tmp_path: Path) -> None:
    state = original.wan_transformer(build_transformer().state_dict())
    other = config.patched({"model.transformer": str(original.write(state, tmp_path / "y.safetensors"))})
    with pytest.raises(RankError, match=r"differences in conversions .*, weights of transformer"):
        ranks(2).run(sample, config, other)

"""Tests of LoRA on several ranks: the same video, and ranks with another file stop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import RankError, RankPool
from safetensors.torch import save_file
from tiny import PROMPT, build_transformer, random_lora, tiny_config

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def sample(mesh: Mesh | None, *configs: RunConfig) -> torch.Tensor:
    """Sample with config i on rank i; further ranks use the last config."""
    rank = 0 if mesh is None else mesh.world.rank
    return Engine(configs[min(rank, len(configs) - 1)], mesh).sample([PROMPT], [3])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(paths):
        save_file(random_lora(build_transformer(), seed=seed), path)
    return paths


def test_two_ranks_agree(ranks: Ranks, tiny_checkpoint: Path, files: list[Path]) -> None:
    config = tiny_config(tiny_checkpoint, lora=[{"path": str(path), "scale": 0.5} for path in files])
    alone = sample(None, config)
    assert (alone - sample(None, tiny_config(tiny_checkpoint))).abs().max() > 1e-2
    for latents in ranks(2).run(sample, config):
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)


def test_another_file_on_one_rank_stops_both(ranks: Ranks, tiny_checkpoint: Path, files: list[Path]) -> None:
    configs = [tiny_config(tiny_checkpoint, lora=[{"path": str(path)}]) for path in files]
    with pytest.raises(RankError, match=r"differences in model\.lora"):
        ranks(2).run(sample, *configs)

"""Tests of quantised weights on ranks: the video of one rank, and one error if a rank quantises otherwise."""

from collections.abc import Callable
from pathlib import Path

import original_names as original
import pytest
import torch
from ranks import RankError, RankPool
from tiny import PROMPT, tiny_config
from torch import Tensor
from wide_wan import Q8, Wide, gguf_of

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def sample(mesh: Mesh, config: RunConfig, of_rank_1: str) -> Tensor:
    quantization = of_rank_1 if mesh.world.rank else "int8"
    config = config.patched({"model.quantization": quantization, "sampling.num_inference_steps": 2})
    return Engine(config, mesh, progress="none").sample([PROMPT], [3])


def test_two_ranks_make_the_video_of_one(ranks: Ranks, tiny_checkpoint: Path) -> None:
    config = tiny_config(tiny_checkpoint, window=(0.0, 1.0))
    expected = sample(Mesh(torch.device("cpu")), config, "int8")
    for got in ranks(2).run(sample, config, "int8", timeout=600):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    with pytest.raises(RankError, match=r"model\.quantization"):
        ranks(2).run(sample, config, "fp8", timeout=600)


def sample_kept(mesh: Mesh, config: RunConfig) -> Tensor:
    return Engine(config, mesh, progress="none").sample([PROMPT], [3])


def test_two_ranks_keep_the_weights_of_a_gguf_file(ranks: Ranks, wide: Wide, tmp_path: Path) -> None:
    file = gguf_of(original.wan_transformer, "wan", Q8)(wide.states["transformer"], tmp_path)
    config = wide.config(transformer=str(file), quantization="gguf")
    expected = sample_kept(Mesh(torch.device("cpu")), config)
    for got in ranks(2).run(sample_kept, config, timeout=600):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)

"""Tests of compiled blocks on ranks: on every mesh and with all weights, one graph for each size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_graphs import counted_graphs
from families import FAMILIES
from ranks import RankError, RankPool, laid_out
from tiny import PROMPT, tiny_config

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def sample_compiled(mesh: Mesh, config: RunConfig, degrees: tuple[int, int, Any]) -> tuple[bool, int]:
    """Return whether compiled blocks make the same latents, and the number of graphs."""
    mesh = laid_out(mesh, *degrees)
    plain = Engine(config, mesh, progress="none").sample([PROMPT], [3])
    with counted_graphs() as graphs:
        engine = Engine(config.patched({"model.compile": "blocks"}), mesh, progress="none")
        same = torch.equal(engine.sample([PROMPT], [3]), plain)
        first = len(graphs)
        engine.sample([PROMPT], [4], mask_seed=9)
        assert len(graphs) == first
    return same, first


@pytest.mark.parametrize(
    ("name", "degrees", "weights", "num_graphs"),
    [
        ("wan", (2, 1, 1), "replicated", 1),
        ("wan", (1, 2, 1), "streamed", 1),
        ("wan", (1, 1, 2), "fsdp", 2),  # the sub branch has half of the tokens
        ("hunyuan-video", (1, 2, 1), "fsdp", 3),
    ],
)
def test_masks_and_steps_compile_nothing(
    ranks: Ranks,
    checkpoint_of: Callable[[str], Path],
    name: str,
    degrees: tuple[int, int, int],
    weights: str,
    num_graphs: int,
) -> None:
    config = FAMILIES[name].config(checkpoint_of(name), window=(0.3, 1.0))
    config = config.patched({"sampling.num_inference_steps": 3, "parallel.weights": weights})
    for result in ranks(2).run(sample_compiled, config, degrees, timeout=600):
        assert result == (True, num_graphs)


def compiled_on_one(mesh: Mesh, config: RunConfig) -> None:
    with counted_graphs():
        compiled = config.patched({"model.compile": "blocks" if mesh.world.rank else "none"})
        Engine(compiled, mesh, progress="none").sample([PROMPT], [3])


def test_ranks_agree_on_it(ranks: Ranks, tiny_checkpoint: Path) -> None:
    with pytest.raises(RankError, match=r"model\.compile"):
        ranks(2).run(compiled_on_one, tiny_config(tiny_checkpoint))

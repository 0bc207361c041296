"""Tests of sharded weights: bitwise the same video, one gather of each block per step, each rank reads only its part.

ZeRO-3 is tested if DeepSpeed is installed (`pip install 's2video[deepspeed]'`).
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import counted_reads
from ranks import RankError, RankPool, laid_out
from tiny import NUM_BLOCKS, PROMPT, tiny_config
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2video.config.run import RunConfig, build_config
from s2video.config.sections import ParallelConfig
from s2video.engine.engine import Engine
from s2video.models.checkpoint import Checkpoint
from s2video.models.loading import load_transformer
from s2video.models.parts import place_transformer
from s2video.parallel.mesh import Mesh, build_mesh
from s2video.parallel.traffic import count_traffic

BLOCKS = ("blocks",)

Ranks = Callable[[int], RankPool]
KINDS = ["fsdp", *(["zero3"] if importlib.util.find_spec("deepspeed") else [])]
STEPS = 2  # of which the second has sub branches


class Gathers(TorchDispatchMode):
    """Record the bytes of gathers into one tensor; only FSDP2 and ZeRO-3 make such gathers here."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d._allgather_base_.default:
            self.sizes.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def with_weights(config: RunConfig, kind: str) -> RunConfig:
    values = config.model_dump(mode="json")
    values["parallel"]["weights"] = kind
    values["sampling"]["num_inference_steps"] = STEPS
    return build_config(values)


def sample_both(mesh: Mesh, config: RunConfig, kind: str, *degrees: Any) -> dict[str, Any]:
    mesh = laid_out(mesh, *degrees)
    whole = Engine(with_weights(config, "replicated"), mesh, progress="none").sample([PROMPT], [3])
    engine = Engine(with_weights(config, kind), mesh, progress="none")
    with count_traffic() as traffic, Gathers() as gathers:
        latents = engine.sample([PROMPT], [3])
    return {
        "latents": latents,
        "whole": whole,
        "fetches": traffic.calls["weights"],
        "sent": traffic.sent["weights"],
        "gathers": gathers.sizes,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ring", "ulysses", "branch", "guidance"),
    [
        (1, 2, 1, {}),
        (2, 1, 1, {"num_draws": 2, "share_prefix": False}),
        (1, 1, 2, {"num_draws": 2}),
        (1, 3, 1, {}),
        (2, 1, 2, {}),
    ],
    ids=["ulysses-2", "ring-2", "branch-2", "ulysses-3", "ring-2-branch-2"],
)
def test_one_gather_of_each_block_a_step(
    ranks: Ranks, tiny_checkpoint: Path, kind: str, ring: int, ulysses: int, branch: int, guidance: dict[str, Any]
) -> None:
    """With any branches and dropped blocks, the latents bitwise equal those of whole weights."""
    world_size = ring * ulysses * branch
    config = tiny_config(tiny_checkpoint, window=(0.5, 1.0), **guidance)
    for result in ranks(world_size).run(sample_both, config, kind, ring, ulysses, branch):
        assert torch.equal(result["latents"], result["whole"])
        assert result["fetches"] == len(result["gathers"]) == STEPS * NUM_BLOCKS
        assert result["sent"] * world_size == sum(result["gathers"]) * (world_size - 1)


def test_each_rank_streams_a_copy_of_its_own(ranks: Ranks, tiny_checkpoint: Path) -> None:
    config = tiny_config(tiny_checkpoint, window=(0.5, 1.0))
    for result in ranks(2).run(sample_both, config, "streamed", 1, 2, 1):
        assert torch.equal(result["latents"], result["whole"])
        assert result["fetches"] == STEPS * NUM_BLOCKS and result["gathers"] == []


def load(mesh: Mesh, folder: Path, kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what this rank read and holds, and whether each gathered block equals that of `load_transformer`."""
    with counted_reads() as read:
        model, weights = place_transformer(Checkpoint(folder), dtype, mesh, build_parallel(kind))
    reference = load_transformer(Checkpoint(folder), dtype, mesh.device)
    expected = dict(reference.named_parameters())
    wrong = [name for name, buffer in reference.named_buffers() if not torch.equal(buffer, model.get_buffer(name))]
    for index, block in enumerate(model.blocks):
        with weights.block(index):
            for name, parameter in block.named_parameters(prefix=f"blocks.{index}"):
                value = expected.pop(name)
                if parameter.dtype != value.dtype or not torch.equal(parameter, value):
                    wrong.append(name)
    for name, value in expected.items():
        parameter = model.get_parameter(name)
        if parameter.dtype != value.dtype or not torch.equal(parameter, value):
            wrong.append(name)
    held = [p.to_local() if isinstance(p, DTensor) else getattr(p, "ds_tensor", p) for p in model.blocks.parameters()]
    return {
        "wrong": wrong,
        "meta": [name for name, p in (*model.named_parameters(), *model.named_buffers()) if p.is_meta],
        "read": {name: size for name, size in read.items() if name.startswith("blocks.")},
        "held": sum(part.numel() for part in held),
        "whole": sum(p.numel() for p in reference.blocks.parameters()),
    }


def build_parallel(kind: Any) -> ParallelConfig:
    return ParallelConfig(weights=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_rank_reads_and_holds_its_part(
    ranks: Ranks, tiny_checkpoint: Path, kind: str, world_size: int, dtype: torch.dtype
) -> None:
    results = ranks(world_size).run(load, tiny_checkpoint, kind, dtype)
    whole = results[0]["whole"]
    for result in results:
        assert result["wrong"] == [] and result["meta"] == []
        # rows of the smallest parameters cannot be split evenly
        assert result["held"] < 1.15 * whole / world_size
        assert sum(result["read"].values()) < 1.15 * 4 * whole / world_size
    if kind == "fsdp":  # ZeRO-3's parts may begin in the middle of a row, which two ranks then read
        assert sum(sum(result["read"].values()) for result in results) == 4 * whole  # the file is in float32


def build_differently(mesh: Mesh) -> None:
    build_mesh(build_parallel("fsdp" if mesh.world.rank else "replicated"), mesh.device)


def test_ranks_that_place_weights_differently_all_stop(ranks: Ranks) -> None:
    """Otherwise one rank would wait in a gather that the other never enters."""
    with pytest.raises(RankError) as caught:
        ranks(2).run(build_differently)
    assert caught.value.kinds == ["AgreementError"] * 2
    assert "'weights': 'fsdp'" in str(caught.value.messages[0])

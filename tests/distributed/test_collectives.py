"""Tests of every collective against the unsharded tensor, with uneven and empty shards."""

from collections.abc import Callable

import pytest
import torch
from ranks import RankPool

from s2video.geometry import split_evenly
from s2video.parallel.collectives import (
    broadcast_tensors,
    collect_parts,
    gather_parts,
    gather_tokens,
    heads_from_tokens,
    share_tokens,
    tokens_from_heads,
)
from s2video.parallel.mesh import Mesh

Ranks = Callable[[int], RankPool]


def _qkv(tokens: int, heads: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens * 31 + heads)
    return [torch.randn(2, tokens, heads, 4, generator=generator).to(dtype) for _ in range(3)]


def round_trip(mesh: Mesh, num_tokens: int, num_heads: int, dtype: torch.dtype) -> None:
    axis = mesh.world
    tokens, heads = split_evenly(num_tokens, axis.size), split_evenly(num_heads, axis.size)
    mine, my_heads = tokens[axis.rank], heads[axis.rank]
    whole = torch.stack(_qkv(num_tokens, num_heads, dtype))
    local = whole[:, :, mine.start : mine.stop]
    by_heads = heads_from_tokens(local.unbind(0), tokens, heads, axis)
    assert torch.equal(torch.stack(by_heads), whole[:, :, :, my_heads.start : my_heads.stop])
    assert torch.equal(tokens_from_heads(by_heads[1], tokens, heads, axis), local[1])
    assert torch.equal(gather_tokens(local[2], tokens, axis), whole[2])
    shared = torch.cat((whole[0], whole[1, :, :3]), dim=1)
    back = tokens_from_heads(
        shared[:, :, my_heads.start : my_heads.stop], tokens, heads, axis, shared=min(3, num_tokens)
    )
    assert torch.equal(back, torch.cat((local[0], whole[1, :, :3]), dim=1))
    own = torch.cat((local[0], whole[1, :, :3]), dim=1)
    got = share_tokens(
        shared.flatten(2) if mesh.is_main else own.flatten(2) * 0, tokens, axis, shared=min(3, num_tokens)
    )
    assert torch.equal(got, own.flatten(2))
    shapes = [[list(whole[0, :, shard.start : shard.stop].shape)] for shard in tokens]
    collected = collect_parts([local[0]], shapes, axis)
    if mesh.is_main:
        assert torch.equal(torch.cat([part for (part,) in collected], dim=1), whole[0])
    else:
        assert collected == []
    for rank, part in enumerate(gather_parts(whole[0] + axis.rank, axis)):
        assert torch.equal(part, whole[0] + rank)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("num_tokens", "num_heads"), [(12, 12), (175, 5), (7, 1), (2, 3), (1, 1), (13, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_travel_exactly(
    ranks: Ranks, world_size: int, num_tokens: int, num_heads: int, dtype: torch.dtype
) -> None:
    ranks(world_size).run(round_trip, num_tokens, num_heads, dtype)


def _two_tensors() -> tuple[torch.Tensor, ...]:
    return torch.arange(6).reshape(2, 3), torch.tensor([0.5], dtype=torch.bfloat16)


def broadcast(mesh: Mesh) -> tuple[torch.Tensor, ...]:
    return broadcast_tensors(_two_tensors() if mesh.is_main else None, mesh.world, mesh.device)


def test_broadcast_brings_shapes_and_dtypes(ranks: Ranks) -> None:
    for values in ranks(3).run(broadcast):
        for value, expected in zip(values, _two_tensors(), strict=True):
            assert value.dtype == expected.dtype and torch.equal(value, expected)

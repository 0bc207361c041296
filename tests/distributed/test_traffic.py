"""Tests that ranks send the minimum number of bytes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import RankPool, laid_out
from tiny import NUM_BLOCKS, build_transformer

from s2video.geometry import split_evenly
from s2video.models.base import Conditioning
from s2video.models.wan.blocks import WanBlockModel
from s2video.parallel.attention import AttentionPlan, sharded_attention, sharded_joint_attention
from s2video.parallel.mesh import Mesh
from s2video.parallel.traffic import count_traffic, ring_minimum, ulysses_minimum
from s2video.sampling.forward import predict

Ranks = Callable[[int], RankPool]
DIM, FLOAT = 4, 4  # channels per head; bytes


def one_layer(mesh: Mesh, ring: int, ulysses: int, num_tokens: int, heads: int, num_text: int) -> dict[str, Any]:
    """Run one attention layer and return calls and bytes by kind."""
    plan = AttentionPlan.even(laid_out(mesh, ring, ulysses).sequence, num_tokens)
    video = [torch.randn(1, plan.mine.length, heads, DIM) for _ in range(3)]
    text = [torch.randn(1, num_text, heads, DIM) for _ in range(3)]
    with count_traffic() as traffic:
        if num_text:
            sharded_joint_attention(video, text, plan, backend=None)
        else:
            sharded_attention(*video, plan, backend=None)
    return {"calls": dict(traffic.calls), "sent": dict(traffic.sent)}


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ulysses_sends_the_least(ranks: Ranks, world_size: int) -> None:
    """4 tensors × local tokens × width × (P−1)/P in two all-to-alls, if tokens and heads divide."""
    num_tokens, heads = 12 * world_size, 2 * world_size
    for layer in ranks(world_size).run(one_layer, 1, world_size, num_tokens, heads, 0):
        assert layer["calls"] == {"all_to_all": 2}
        assert layer["sent"]["all_to_all"] * world_size == 4 * 12 * heads * DIM * (world_size - 1) * FLOAT


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_ring_sends_the_least(ranks: Ranks, world_size: int) -> None:
    """(R−1) × 2 × local tokens × width, if tokens divide."""
    for layer in ranks(world_size).run(one_layer, world_size, 1, 7 * world_size, 3, 0):
        assert layer["calls"] == {"send": world_size - 1}
        assert layer["sent"]["send"] == (world_size - 1) * 2 * 7 * 3 * DIM * FLOAT


@pytest.mark.parametrize(("num_tokens", "heads"), [(175, 5), (3, 1), (10, 7)])
@pytest.mark.parametrize("num_text", [0, 6])
def test_the_least_where_nothing_divides(ranks: Ranks, num_tokens: int, heads: int, num_text: int) -> None:
    """2 x 2: Ulysses in both groups, a ring around them, and the text's parts gathered around the ring."""
    layers = ranks(4).run(one_layer, 2, 2, num_tokens, heads, num_text)
    shards = [shard.length for shard in split_evenly(num_tokens, 4)]
    head_counts = [shard.length for shard in split_evenly(heads, 2)]
    for rank, layer in enumerate(layers):
        group, place = divmod(rank, 2)
        held = ulysses_minimum(shards[2 * group : 2 * group + 2], head_counts, DIM, shared=num_text)[place]
        assert layer["sent"]["all_to_all"] == held * FLOAT
        around = ring_minimum([sum(shards[:2]), sum(shards[2:])], head_counts[place] * DIM)[group]
        assert layer["sent"].get("send", 0) == around * FLOAT
        parts = num_text * head_counts[place] * (DIM + 1) * FLOAT
        assert layer["sent"].get("all_gather", 0) == parts


def forward(mesh: Mesh, ring: int, ulysses: int) -> dict[str, Any]:
    """Run one pass of a tiny Wan model. `stopped` tests that bytes sent after the count are not counted."""
    model = WanBlockModel(build_transformer())
    latents, timestep, text = torch.zeros(1, 16, 5, 10, 14), torch.tensor([500]), Conditioning(torch.zeros(1, 8, 128))
    plan = AttentionPlan.even(laid_out(mesh, ring, ulysses).sequence, model.num_tokens(latents))
    with count_traffic() as traffic, torch.no_grad():
        context = model.prepare(latents, timestep, text, plan)
        state = model.embed(latents, context)
        for index in range(model.num_blocks):
            state = model.run_block(index, state, context)
        model.project(state, context)
    sent = traffic.total
    model.project(state, context)
    return {"calls": dict(traffic.calls), "sent": dict(traffic.sent), "stopped": traffic.total == sent}


@pytest.mark.parametrize(("ring", "ulysses"), [(1, 2), (2, 1)])
def test_a_pass_sends_what_its_layers_must(ranks: Ranks, ring: int, ulysses: int) -> None:
    """With 175 tokens and 5 heads of 12, ranks send only in self-attention, and once at the end."""
    shards, heads, layers = [88, 87], [3, 2], NUM_BLOCKS
    for rank, counted in enumerate(ranks(2).run(forward, ring, ulysses)):
        if ring == 1:
            kind, calls, least = "all_to_all", 2, ulysses_minimum(shards, heads, 12)[rank]
        else:
            kind, calls, least = "send", 1, ring_minimum(shards, 60)[rank]
        assert counted["stopped"]
        assert counted["calls"] == {kind: calls * layers, "all_gather": 1}
        assert counted["sent"][kind] == layers * least * FLOAT
        assert counted["sent"]["all_gather"] == max(shards) * 64 * FLOAT


def step_with_branches(mesh: Mesh) -> dict[str, dict[str, int]]:
    """Run one step of a tiny Wan model: cond next to uncond, and a sub branch that forks at block 4 and drops it."""
    mesh = laid_out(mesh, 1, 1, 2)
    latents, timestep = torch.zeros(1, 16, 5, 10, 14), torch.tensor([500])
    cond, uncond = Conditioning(torch.zeros(1, 8, 128)), Conditioning(torch.ones(1, 8, 128))
    with count_traffic() as traffic, torch.no_grad():
        predict(
            WanBlockModel(build_transformer()), latents, timestep, mesh=mesh, cond=cond, uncond=uncond, masks=[(4,)]
        )
    return {"calls": dict(traffic.calls), "sent": dict(traffic.sent)}


def test_a_fork_hands_over_half_of_the_tokens_and_nothing_else_moves(ranks: Ranks) -> None:
    """With 2 ranks, nothing is sent before the fork; after it, one block runs on both."""
    shards, width = [88, 87], 60
    exchanged = 16 * 5 * 10 * 14 + max(shards) * 64  # cond and uncond as predictions; the sub branch as tokens
    for rank, counted in enumerate(ranks(2).run(step_with_branches)):
        handed_over = {"send": shards[1] * width * FLOAT} if rank == 0 else {}
        sends = {"send": 1} if rank == 0 else {}
        assert counted["calls"] == {"all_to_all": 2 * (NUM_BLOCKS - 5), "all_gather": 2} | sends
        least = ulysses_minimum(shards, [3, 2], 12)[rank] * (NUM_BLOCKS - 5)
        assert counted["sent"] == {"all_to_all": least * FLOAT, "all_gather": exchanged * FLOAT} | handed_over

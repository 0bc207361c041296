"""Tests of attention over ring x ulysses against one process, with uneven token and head counts."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from ranks import RankError, RankPool, laid_out
from torch import Tensor

from s2video.config.sections import ParallelConfig
from s2video.geometry import Shard
from s2video.parallel.attention import AttentionPlan, sharded_attention, sharded_joint_attention
from s2video.parallel.mesh import Mesh, SequenceAxes, build_mesh

Ranks = Callable[[int], RankPool]

LAYOUTS = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (4, 1), (1, 4)]  # ring, ulysses
TOLERANCE = 1e-5


def _random(length: int, heads: int, seed: int) -> list[Tensor]:
    """Return Q, K and V of two samples."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, length, heads, 4, generator=generator) for _ in range(3)]


def _alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


def attend(mesh: Mesh, ring: int, ulysses: int, lengths: list[int] | int, heads: int, backend: str | None) -> None:
    axes = laid_out(mesh, ring, ulysses).sequence
    plan = AttentionPlan.even(axes, lengths) if isinstance(lengths, int) else _plan(axes, lengths)
    whole = _random(plan.tokens[-1].stop, heads, seed=heads)
    own = slice(plan.mine.start, plan.mine.stop)
    got = sharded_attention(*(x[:, own] for x in whole), plan, backend=backend)
    torch.testing.assert_close(got, _alone(*whole)[:, own], atol=TOLERANCE, rtol=0)


def _plan(axes: SequenceAxes, lengths: list[int]) -> AttentionPlan:
    return AttentionPlan(axes, tuple(Shard(sum(lengths[:i]), n) for i, n in enumerate(lengths)))


@pytest.mark.parametrize(("ring", "ulysses"), LAYOUTS)
@pytest.mark.parametrize(("num_tokens", "num_heads"), [(24, 12), (175, 5), (9, 1), (2, 2), (1, 7)])
def test_attention_equals_one_process(ranks: Ranks, ring: int, ulysses: int, num_tokens: int, num_heads: int) -> None:
    ranks(ring * ulysses).run(attend, ring, ulysses, num_tokens, num_heads, None)


@pytest.mark.parametrize("lengths", [[5, 0, 11, 3], [0, 0, 7, 1], [0, 9, 0, 0]])
@pytest.mark.parametrize(("ring", "ulysses"), [(2, 2), (4, 1), (1, 4)])
def test_any_table_of_shards_will_do(ranks: Ranks, ring: int, ulysses: int, lengths: list[int]) -> None:
    ranks(4).run(attend, ring, ulysses, lengths, 3, None)


@pytest.mark.parametrize("backend", ["native", "_native_flash", "_native_math", "flex"])
def test_the_ring_takes_a_backend_by_name(ranks: Ranks, backend: str) -> None:
    ranks(2).run(attend, 2, 1, 9, 2, backend)


def test_the_ring_refuses_a_backend_without_a_log_sum_exp(ranks: Ranks) -> None:
    with pytest.raises(RankError) as caught:
        ranks(2).run(attend, 2, 1, 9, 2, "xformers")
    assert caught.value.kinds == ["InputError"] * 2
    assert all(message and "xformers" in message and "_native_flash" in message for message in caught.value.messages)


def attend_jointly(
    mesh: Mesh, ring: int, ulysses: int, num_tokens: int, heads: int, num_text: int, lengths: list[int] | None
) -> Tensor:
    plan = AttentionPlan.even(laid_out(mesh, ring, ulysses).sequence, num_tokens)
    video, text = _random(num_tokens, heads, seed=1), _random(num_text, heads, seed=2)
    own = slice(plan.mine.start, plan.mine.stop)
    joint = sharded_joint_attention([x[:, own] for x in video], text, plan, text_lengths=lengths, backend=None)
    got, got_text = joint.split((plan.mine.length, num_text), dim=1)
    for sample, length in enumerate(lengths or [num_text] * 2):
        each = slice(sample, sample + 1)
        expected = _alone(*(torch.cat((v[each], t[each, :length]), dim=1) for v, t in zip(video, text, strict=True)))
        torch.testing.assert_close(got[each], expected[:, own], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(got_text[each, :length], expected[:, num_tokens:], atol=TOLERANCE, rtol=0)
        assert not got_text[sample, length:].any()
    return got_text


@pytest.mark.parametrize(("ring", "ulysses"), LAYOUTS)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_text", "lengths"),
    [
        (24, 12, 6, None),
        (175, 5, 7, [3, 7]),
        (13, 3, 5, [4, 4]),
        (2, 1, 9, [9, 0]),
        (1, 7, 1, None),
        (7, 2, 0, None),
    ],
)
def test_joint_attention_equals_one_process(
    ranks: Ranks,
    ring: int,
    ulysses: int,
    num_tokens: int,
    num_heads: int,
    num_text: int,
    lengths: list[int] | None,
) -> None:
    """Text keys count once, padding does not count, and the text output is bitwise the same on every rank."""
    texts = ranks(ring * ulysses).run(attend_jointly, ring, ulysses, num_tokens, num_heads, num_text, lengths)
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_joint_attention_alone() -> None:
    """A single process uses the same path."""
    plan = AttentionPlan.even(Mesh(torch.device("cpu")).sequence, 11)
    video, text = _random(11, 3, seed=1), _random(4, 3, seed=2)
    got = sharded_joint_attention(video, text, plan, backend=None)
    expected = _alone(*(torch.cat(pair, dim=1) for pair in zip(video, text, strict=True)))
    assert torch.equal(got, expected)


def describe(mesh: Mesh, ring: int | None, ulysses: int | None) -> tuple[int, int, int, int, int]:
    axes = build_mesh(ParallelConfig(ring=ring, ulysses=ulysses), mesh.device).sequence
    return axes.whole.rank, axes.ring.size, axes.ring.rank, axes.ulysses.size, axes.ulysses.rank


def test_neighbours_are_one_ulysses_group(ranks: Ranks) -> None:
    assert ranks(4).run(describe, 2, None) == [(0, 2, 0, 2, 0), (1, 2, 0, 2, 1), (2, 2, 1, 2, 0), (3, 2, 1, 2, 1)]


def told_of_different_meshes(mesh: Mesh) -> None:
    build_mesh(ParallelConfig(ring=1 + mesh.world.rank), mesh.device)


def test_ranks_that_were_told_of_different_meshes_stop(ranks: Ranks) -> None:
    with pytest.raises(RankError) as caught:
        ranks(2).run(told_of_different_meshes, timeout=60)
    assert caught.value.kinds == ["AgreementError"] * 2
    assert caught.value.messages[0] is not None and "rank 1: {'ring': 2, 'ulysses': 1" in caught.value.messages[0]

"""Attention over tokens that are sharded across ranks: Ulysses inside a group of ranks, a ring around the groups.

Inside a group, token shards are traded for head shards, so that every rank holds all tokens of its group for its
heads. Around the ring, keys and values of the groups go by, and their parts of the softmax are merged. Token counts
and head counts need not divide by anything: shards are uneven, some may be empty, and nothing is padded, so nothing
can leak into a softmax. In joint attention, text tokens are on every rank, and count once. Knows no model.

Dimension letters as in `collectives`; M text tokens. S_local of these tokens are this rank's, S_group its group's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from ..geometry import Shard, split_evenly
from .collectives import gather_parts, heads_from_tokens, tokens_from_heads
from .mesh import SequenceAxes
from .ring import Kernel, choose_kernel, merge_partial, partial_attention, ring_attention


@dataclass(frozen=True)
class AttentionPlan:
    """Who holds which tokens while blocks run, and the axes over which attention sees all of them.

    Attributes:
        tokens: contiguous shards of all tokens, in the order of `axes.whole`: ulysses varies fastest.
    """

    axes: SequenceAxes
    tokens: tuple[Shard, ...]

    @classmethod
    def even(cls, axes: SequenceAxes, num_tokens: int) -> "AttentionPlan":
        """Shards whose lengths differ by at most one."""
        return cls(axes, split_evenly(num_tokens, axes.whole.size))

    def divided(self, axes: SequenceAxes) -> "AttentionPlan":
        """The plan of `axes`, whose ranks are this plan's, each followed by its partners: every shard is shared out
        among them, and nothing else moves."""
        partners = axes.whole.size // self.axes.whole.size
        parts = ((shard.start, part) for shard in self.tokens for part in split_evenly(shard.length, partners))
        return AttentionPlan(axes, tuple(Shard(start + part.start, part.length) for start, part in parts))

    @property
    def mine(self) -> Shard:
        """This rank's tokens."""
        return self.tokens[self.axes.whole.rank]

    @property
    def group_tokens(self) -> tuple[Shard, ...]:
        """The shards of this rank's Ulysses group, by rank of the group, counted from the group's first token."""
        degree = self.axes.ulysses.size
        first = self.axes.ring.rank * degree
        group = self.tokens[first : first + degree]
        return tuple(Shard(shard.start - group[0].start, shard.length) for shard in group)

    @property
    def block_lengths(self) -> tuple[int, ...]:
        """Tokens of each group, by rank of the ring: the blocks of keys and values that go round."""
        degree = self.axes.ulysses.size
        lengths = [shard.length for shard in self.tokens]
        return tuple(sum(lengths[i : i + degree]) for i in range(0, len(lengths), degree))


def sharded_attention(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, backend: str | None) -> Tensor:
    """softmax(QKᵀ/√D)·V over all tokens: [B, S_local, H, D] each -> [B, S_local, H, D].

    Args:
        backend: name of a backend of diffusers' attention dispatcher; None for its default. With a ring it must be
            one that `ring` knows.

    Raises:
        InputError: with a ring, a backend that cannot be used there.
    """
    kernel = _ring_kernel(query, plan, backend)
    ulysses, ring = plan.axes.ulysses, plan.axes.ring
    heads = split_evenly(query.shape[2], ulysses.size)
    tokens = plan.group_tokens
    query, key, value = heads_from_tokens((query, key, value), tokens, heads, ulysses)
    if not heads[ulysses.rank].length:  # more ranks than heads; those around the ring hold none either
        output = query
    elif kernel is None:
        output = _attend(query, key, value, backend)
    else:
        output = ring_attention(query, key, value, plan.block_lengths, ring, kernel)[0].type_as(query)
    return tokens_from_heads(output, tokens, heads, ulysses)


def sharded_joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    text_query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    plan: AttentionPlan,
    *,
    text_lengths: Sequence[int] | None = None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Video and text tokens attend to all of both, as one softmax: the text stands behind the video.

    Args:
        query, key, value: this rank's video tokens, [B, S_local, H, D] each.
        text_query, text_key, text_value: all text tokens, [B, M, H, D] each, the same on every rank.
        text_lengths: how many text tokens of each sample are none of its padding, 0 … M; None: all are text. Padding
            stands at the end, is left out of the softmax, and its output is zero.
        backend: as `sharded_attention` takes it.

    Returns:
        [B, S_local, H, D] for the video and [B, M, H, D] for the text, the latter the same to the bit on every rank.
    """
    kernel = _ring_kernel(query, plan, backend)
    ulysses = plan.axes.ulysses
    heads = split_evenly(query.shape[2], ulysses.size)
    tokens, mine = plan.group_tokens, heads[ulysses.rank]
    batch, num_text = text_query.shape[:2]
    video = heads_from_tokens((query, key, value), tokens, heads, ulysses)
    text = tuple(x[:, :, mine.start : mine.stop] for x in (text_query, text_key, text_value))
    lengths = (num_text,) * batch if text_lengths is None else tuple(text_lengths)
    assert len(lengths) == batch and all(0 <= length <= num_text for length in lengths), (lengths, batch, num_text)

    group = sum(shard.length for shard in tokens)
    joint = video[0].new_zeros(batch, group + num_text, mine.length, query.shape[-1])
    if not mine.length:  # more ranks than heads; those around the ring hold none either
        pass
    elif kernel is None:
        for samples, length in _runs(lengths):
            q, k, v = (torch.cat((a[samples], b[samples, :length]), dim=1) for a, b in zip(video, text, strict=True))
            joint[samples, : group + length] = _attend(q, k, v, backend)
    else:
        joint[:, :group], joint[:, group:] = _joint_ring(video, text, lengths, plan, kernel)
    joint = tokens_from_heads(joint, tokens, heads, ulysses, shared=num_text)
    return joint[:, : plan.mine.length], joint[:, plan.mine.length :]


def _joint_ring(
    video: Sequence[Tensor], text: Sequence[Tensor], lengths: Sequence[int], plan: AttentionPlan, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """Q, K, V of this group's video tokens and of the text -> both outputs, in float32.

    The text's keys never travel: every rank adds them to its video queries itself. The text's queries meet each block
    of keys where it lives, the text's own on the ring's first rank; the parts are gathered and merged in one order
    everywhere, so that the text's output cannot drift apart.
    """
    ring = plan.axes.ring
    query, key, value = video
    text_query, text_key, text_value = text
    out, lse = ring_attention(query, key, value, plan.block_lengths, ring, kernel)
    text_part, text_lse = partial_attention(text_query, key, value, kernel)
    video_out, text_out = torch.empty_like(out), torch.zeros_like(text_part)
    for samples, length in _runs(lengths):
        k, v = text_key[samples, :length], text_value[samples, :length]
        seen = partial_attention(query[samples], k, v, kernel)
        video_out[samples] = merge_partial(out[samples], lse[samples], *seen)[0]
        if ring.rank == 0:
            seen = partial_attention(text_query[samples], k, v, kernel)
            merged = merge_partial(text_part[samples], text_lse[samples], *seen)
            text_part[samples], text_lse[samples] = merged
    packed = torch.cat((text_part, text_lse.unsqueeze(-1)), dim=-1)
    first, *others = ((part[..., :-1], part[..., -1]) for part in gather_parts(packed, ring))
    for other in others:
        first = merge_partial(*first, *other)
    for samples, length in _runs(lengths):
        text_out[samples, :length] = first[0][samples, :length]
    return video_out, text_out


def _runs(lengths: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Neighbouring samples of one length, and that length: as few calls of a kernel as need be."""
    start = 0
    for length, samples in groupby(lengths):
        stop = start + len(list(samples))
        yield slice(start, stop), length
        start = stop


def _ring_kernel(query: Tensor, plan: AttentionPlan, backend: str | None) -> Kernel | None:
    """None without a ring. Asked before anything is sent: a rank that raised half way would leave others waiting."""
    if plan.axes.ring.size == 1:
        return None
    return choose_kernel(query.device, query.dtype, query.shape[-1], backend)


def _attend(query: Tensor, key: Tensor, value: Tensor, backend: str | None) -> Tensor:
    return dispatch_attention_fn(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, backend=backend)

"""Attention over tokens sharded across ranks, with Ulysses inside groups of ranks and a ring over the groups.

Inside a group, an all-to-all exchanges token shards for head shards, so that every rank holds all tokens of its group
for its heads. Around the ring, the groups pass on keys and values, and partial softmax results are merged. Token and
head counts may be any: shards are uneven, some may be empty, and nothing is padded, so that no padding can enter a
softmax. In joint attention every rank holds all text tokens, and they count once. Knows no model.

Dimension letters as in `collectives`; M text tokens, S_local tokens of this rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from torch import Tensor

from ..geometry import Shard, split_evenly
from .collectives import gather_parts, heads_from_tokens, tokens_from_heads
from .mesh import Axis, SequenceAxes
from .ring import Kernel, choose_kernel, fastest_kernel, merge_partial, partial_attention, ring_attention

_NATIVE = AttentionBackendName.NATIVE  # torch's own choice of a kernel


@dataclass(frozen=True)
class AttentionPlan:
    """The tokens of each rank while blocks run, and the axes over which attention sees all tokens.

    Attributes:
        tokens: contiguous shards of all tokens, in the rank order of `axes.whole`, in which ulysses varies fastest.
    """

    axes: SequenceAxes
    tokens: tuple[Shard, ...]

    @classmethod
    def even(cls, axes: SequenceAxes, num_tokens: int) -> "AttentionPlan":
        """Return a plan with shards whose lengths differ by at most one."""
        return cls(axes, split_evenly(num_tokens, axes.whole.size))

    def divided(self, axes: SequenceAxes) -> "AttentionPlan":
        """Return the plan for `axes`, in which each rank of this plan is followed by its partners.

        Each shard is split among its rank and the partners; no other tokens move.
        """
        partners = axes.whole.size // self.axes.whole.size
        parts = ((shard.start, part) for shard in self.tokens for part in split_evenly(shard.length, partners))
        return AttentionPlan(axes, tuple(Shard(start + part.start, part.length) for start, part in parts))

    @property
    def mine(self) -> Shard:
        """The shard of this rank."""
        return self.tokens[self.axes.whole.rank]

    @property
    def group_tokens(self) -> tuple[Shard, ...]:
        """The shards of this rank's Ulysses group, by group rank, with starts relative to the group's first token."""
        degree = self.axes.ulysses.size
        first = self.axes.ring.rank * degree
        group = self.tokens[first : first + degree]
        return tuple(Shard(shard.start - group[0].start, shard.length) for shard in group)

    @property
    def block_lengths(self) -> tuple[int, ...]:
        """The number of tokens of each group, by ring rank: the lengths of the blocks of keys and values."""
        degree = self.axes.ulysses.size
        lengths = [shard.length for shard in self.tokens]
        return tuple(sum(lengths[i : i + degree]) for i in range(0, len(lengths), degree))


def attention_kernel(backend: str | None, device: torch.device, dtype: torch.dtype, dim: int, ring: Axis) -> str:
    """Return the name of the kernel with which video tokens attend to each other; "native" means torch's choice.

    Args:
        backend: from `named_backend`.
        dim: channels of a head.
    """
    if ring.size > 1:
        return choose_kernel(device, dtype, dim, backend).name
    fastest = fastest_kernel(device, dtype, dim)
    return backend or (fastest.name if fastest else _NATIVE.value)


def sharded_attention(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, backend: str | None) -> Tensor:
    """Return softmax(QKᵀ/√D)·V over all tokens: [B, S_local, H, D] each -> [B, S_local, H, D].

    Args:
        backend: a backend of diffusers' attention dispatcher; None for the one that `attention_kernel` names. With a
            ring it must be in `ring.KERNELS`.

    Raises:
        InputError: the backend cannot be used with a ring.
    """
    kernel = _ring_kernel(query, plan, backend)
    ulysses, ring = plan.axes.ulysses, plan.axes.ring
    heads = split_evenly(query.shape[2], ulysses.size)
    tokens = plan.group_tokens
    query, key, value = heads_from_tokens((query, key, value), tokens, heads, ulysses)
    if not heads[ulysses.rank].length:  # more ranks than heads; this rank's ring then has no heads either
        output = query
    elif kernel is None:
        output = _attend(query, key, value, backend)
    else:
        output = ring_attention(query, key, value, plan.block_lengths, ring, kernel)[0].type_as(query)
    return tokens_from_heads(output, tokens, heads, ulysses)


def sharded_joint_attention(
    video: Sequence[Tensor],
    text: Sequence[Tensor],
    plan: AttentionPlan,
    *,
    text_lengths: Sequence[int] | None = None,
    backend: str | None,
    text_first: bool = False,
) -> Tensor:
    """Return joint attention: video and text tokens attend to all video and text tokens, in one softmax.

    Args:
        video: query, key and value of this rank's video tokens, [B, S_local, H, D] each.
        text: query, key and value of all text tokens, [B, M, H, D] each, the same on every rank.
        text_lengths: number of text tokens of each sample without padding, 0 … M; None if there is no padding. Padding
            is at the end and excluded from the softmax; its output is zero.
        backend: as in `sharded_attention`.
        text_first: without a ring, text tokens precede those of the video for the kernel, which changes the last bits.

    Returns:
        [B, S_local + M, H, D], video before text; the text is bitwise the same on every rank.
    """
    kernel = _ring_kernel(video[0], plan, backend)
    ulysses = plan.axes.ulysses
    heads = split_evenly(video[0].shape[2], ulysses.size)
    tokens, mine = plan.group_tokens, heads[ulysses.rank]
    batch, num_text = text[0].shape[:2]
    video = heads_from_tokens(tuple(video), tokens, heads, ulysses)
    text = tuple(x[:, :, mine.start : mine.stop] for x in text)
    lengths = (num_text,) * batch if text_lengths is None else tuple(text_lengths)
    assert len(lengths) == batch and all(0 <= length <= num_text for length in lengths), (lengths, batch, num_text)

    group = sum(shard.length for shard in tokens)
    joint = video[0].new_zeros(batch, group + num_text, mine.length, video[0].shape[-1])
    if not mine.length:  # more ranks than heads; this rank's ring then has no heads either
        pass
    elif kernel is None:
        for samples, length in _runs(lengths):
            parts = ((a[samples], b[samples, :length]) for a, b in zip(video, text, strict=True))
            q, k, v = (torch.cat(pair[:: -1 if text_first else 1], dim=1) for pair in parts)
            output = _attend(q, k, v, backend)
            joint[samples, : group + length] = output.roll(-length, dims=1) if text_first else output
    else:
        joint[:, :group], joint[:, group:] = _joint_ring(video, text, lengths, plan, kernel)
    return tokens_from_heads(joint, tokens, heads, ulysses, shared=num_text)


def _joint_ring(
    video: Sequence[Tensor], text: Sequence[Tensor], lengths: Sequence[int], plan: AttentionPlan, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """Return both outputs in float32 for Q, K, V of this group's video tokens and of the text.

    Text keys are never sent: every rank merges them into its video queries itself. Text queries attend to each block of
    video keys on the rank that holds it, and to the text keys on the ring's first rank. The parts are gathered and
    merged in the same order on every rank, so that the text's output is the same everywhere.
    """
    ring = plan.axes.ring
    query, key, value = video
    text_query, text_key, text_value = text
    out, lse = ring_attention(query, key, value, plan.block_lengths, ring, kernel)
    text_part, text_lse = partial_attention(text_query, key, value, kernel)
    video_out, text_out = torch.empty_like(out), torch.zeros_like(text_part)
    for samples, length in _runs(lengths):
        k, v = text_key[samples, :length], text_value[samples, :length]
        partial = partial_attention(query[samples], k, v, kernel)
        video_out[samples] = merge_partial(out[samples], lse[samples], *partial)[0]
        if ring.rank == 0:
            partial = partial_attention(text_query[samples], k, v, kernel)
            merged = merge_partial(text_part[samples], text_lse[samples], *partial)
            text_part[samples], text_lse[samples] = merged
    packed = torch.cat((text_part, text_lse.unsqueeze(-1)), dim=-1)
    first, *others = ((part[..., :-1], part[..., -1]) for part in gather_parts(packed, ring))
    for other in others:
        first = merge_partial(*first, *other)
    for samples, length in _runs(lengths):
        text_out[samples, :length] = first[0][samples, :length]
    return video_out, text_out


def set_backend(transformer: Any, backend: str | None) -> None:
    """Let the attention that is not sharded, such as that to text, use a backend; None for torch's choice.

    Unlike `set_attention_backend` of diffusers, this does not change the default of other models.
    """
    if backend is not None:
        with attention_backend(backend):  # which restores the default
            transformer.set_attention_backend(backend)
        return
    for module in transformer.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = _NATIVE


def _runs(lengths: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Yield slices of consecutive samples with the same length, and that length, to call the kernel less often."""
    start = 0
    for length, samples in groupby(lengths):
        stop = start + len(list(samples))
        yield slice(start, stop), length
        start = stop


def _ring_kernel(query: Tensor, plan: AttentionPlan, backend: str | None) -> Kernel | None:
    """Return the ring's kernel, or None without a ring.

    Call before any communication: a rank that raises later would leave others waiting.
    """
    if plan.axes.ring.size == 1:
        return None
    return choose_kernel(query.device, query.dtype, query.shape[-1], backend)


def _attend(query: Tensor, key: Tensor, value: Tensor, backend: str | None) -> Tensor:
    fastest = fastest_kernel(query.device, query.dtype, query.shape[-1]) if backend is None else None
    if fastest is not None:
        # not by diffusers, which switches all other kernels of the process off during the call, in every thread
        return fastest.run(*(x.transpose(1, 2) for x in (query, key, value)))[0].transpose(1, 2)
    wanted = AttentionBackendName(backend or _NATIVE)
    return dispatch_attention_fn(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, backend=wanted)

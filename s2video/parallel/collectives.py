"""Collectives on uneven shards, named after the caller's result. On an axis of size 1 they return their input.

Dimension letters: B batch, S all tokens, S_local this rank's tokens, H all heads, H_local this rank's heads,
D head dimension. Shards are contiguous and may be empty. Only `gather_tokens` pads, and removes the padding before it
returns.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..geometry import Shard
from .mesh import Axis
from .traffic import record


def gather_tokens(local: Tensor, shards: Sequence[Shard], axis: Axis) -> Tensor:
    """Gather all tokens on every rank, in the order of the shards: [B, S_local, ...] -> [B, S, ...]."""
    if axis.size == 1:
        return local
    longest = max(shard.length for shard in shards)
    padded = local.new_zeros(local.shape[0], longest, *local.shape[2:])
    padded[:, : local.shape[1]] = local
    gathered = [torch.empty_like(padded) for _ in shards]
    record("all_gather", padded.nbytes * (axis.size - 1))
    dist.all_gather(gathered, padded, group=axis.group)
    return torch.cat([part[:, : shard.length] for part, shard in zip(gathered, shards, strict=True)], dim=1)


def gather_parts(local: Tensor, axis: Axis) -> tuple[Tensor, ...]:
    """Gather every rank's tensor on every rank, in rank order. Their shapes must be the same."""
    if axis.size == 1:
        return (local,)
    gathered = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(axis.size)]
    record("all_gather", local.nbytes * (axis.size - 1))
    dist.all_gather(gathered, local.contiguous(), group=axis.group)
    return tuple(gathered)


def share_tokens(local: Tensor, shards: Sequence[Shard], axis: Axis, *, shared: int = 0) -> Tensor:
    """Scatter rank 0's tokens: its [B, S + shared, D] -> [B, S_local + shared, D] on every rank.

    Args:
        local: on the other ranks, only its B, D and dtype are used.
        shared: number of rows at the end that every rank receives.
    """
    if axis.size == 1:
        return local
    assert axis.group is not None
    if axis.rank > 0:
        received = local.new_empty(local.shape[0], shards[axis.rank].length + shared, local.shape[2])
        _exchange([], [received], [0], axis)
        return received
    tokens, behind = local.split((local.shape[1] - shared, shared), dim=1)
    parts = [torch.cat((tokens[:, shard.start : shard.stop], behind), dim=1) for shard in shards]
    record("send", sum(part.nbytes for part in parts[1:]))
    # not an all-to-all: NCCL has hung in those where one rank sends nothing
    _exchange(parts[1:], [], range(1, axis.size), axis)
    return parts[0]


def _exchange(outgoing: Sequence[Tensor], incoming: Sequence[Tensor], others: Sequence[int], axis: Axis) -> None:
    """Send each outgoing tensor to its rank of `others`, or receive each incoming one from it. Skip empty ones.

    Outgoing tensors must be contiguous. Both sides know which tensors are empty.
    """
    assert axis.group is not None
    transfer, tensors = (dist.isend, outgoing) if outgoing else (dist.irecv, incoming)
    transfers = [
        dist.P2POp(transfer, tensor, dist.get_global_rank(axis.group, rank), axis.group)
        for tensor, rank in zip(tensors, others, strict=True)
        if tensor.numel()
    ]
    for request in dist.batch_isend_irecv(transfers) if transfers else []:
        request.wait()


def collect_parts(parts: Sequence[Tensor], shapes: Sequence[Sequence[Sequence[int]]], axis: Axis) -> list[list[Tensor]]:
    """Gather every rank's tensors on rank 0, by rank. Other ranks get an empty list.

    Args:
        parts: this rank's tensors; may be empty on other ranks than 0.
        shapes: the shapes of each rank's tensors, read on rank 0 only. All have the dtype of rank 0's first tensor.
    """
    if axis.size == 1:
        return [list(parts)]
    if axis.rank > 0:
        record("send", sum(part.nbytes for part in parts))
        _exchange([part.contiguous() for part in parts], [], [0] * len(parts), axis)
        return []
    others = [[parts[0].new_empty(tuple(shape)) for shape in of_rank] for of_rank in shapes[1:]]
    ranks = [rank for rank, of_rank in enumerate(others, start=1) for _ in of_rank]
    _exchange([], [part for of_rank in others for part in of_rank], ranks, axis)
    return [list(parts), *others]


def heads_from_tokens(
    tensors: Sequence[Tensor], tokens: Sequence[Shard], heads: Sequence[Shard], axis: Axis
) -> tuple[Tensor, ...]:
    """Exchange token shards for head shards: each [B, S_local, H, D] -> [B, S, H_local, D], all in one all-to-all.

    Rank r holds `tokens[r]` before and `heads[r]` after.
    """
    if axis.size == 1:
        return tuple(tensors)
    count, (batch, length, _, dim) = len(tensors), tensors[0].shape
    assert length == tokens[axis.rank].length, (length, tokens[axis.rank])
    sent = [(count, batch, length, h.length, dim) for h in heads]
    received = [(count, batch, t.length, heads[axis.rank].length, dim) for t in tokens]
    outgoing, parts = _buffers(tensors[0], sent)
    for part, h in zip(parts, heads, strict=True):
        for target, tensor in zip(part, tensors, strict=True):
            target.copy_(tensor[:, :, h.start : h.stop])
    return torch.cat(_all_to_all(outgoing, parts, received, axis), dim=2).unbind(0)


def tokens_from_heads(
    local: Tensor, tokens: Sequence[Shard], heads: Sequence[Shard], axis: Axis, *, shared: int = 0
) -> Tensor:
    """Exchange head shards for token shards: [B, S + shared, H_local, D] -> [B, S_local + shared, H, D].

    This is one all-to-all.

    Args:
        shared: number of rows at the end that every rank receives (text in joint attention).
    """
    if axis.size == 1:
        return local
    batch, length, own, dim = local.shape
    sent = [(batch, t.length + shared, own, dim) for t in tokens]
    received = [(batch, tokens[axis.rank].length + shared, h.length, dim) for h in heads]
    outgoing, parts = _buffers(local, sent)
    for part, t in zip(parts, tokens, strict=True):
        part[:, : t.length].copy_(local[:, t.start : t.stop])
        part[:, t.length :].copy_(local[:, length - shared :])
    return torch.cat(_all_to_all(outgoing, parts, received, axis), dim=2)


def _buffers(like: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, list[Tensor]]:
    """Return a flat uninitialised tensor for an all-to-all, and consecutive views of it with the given shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = like.new_empty(sum(sizes))
    return flat, [chunk.view(shape) for chunk, shape in zip(flat.split(sizes), shapes, strict=True)]


def _all_to_all(
    outgoing: Tensor, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], axis: Axis
) -> list[Tensor]:
    """Send `parts[r]`, a view of `outgoing`, to rank r, and receive a tensor of `shapes[r]`. Any may be empty."""
    incoming, received = _buffers(outgoing, shapes)
    record("all_to_all", outgoing.nbytes - parts[axis.rank].nbytes)
    dist.all_to_all_single(
        incoming, outgoing, [x.numel() for x in received], [x.numel() for x in parts], group=axis.group
    )
    return received


def gather_objects(value: Any, axis: Axis) -> list[Any]:
    """Gather every rank's picklable `value` on every rank, in rank order."""
    if axis.size == 1:
        return [value]
    values: list[Any] = [None] * axis.size
    dist.all_gather_object(values, value, group=axis.group)
    return values


def any_rank(flag: bool, axis: Axis, device: torch.device) -> bool:
    """Return on every rank whether `flag` is set on any rank."""
    if axis.size == 1:
        return flag
    highest = torch.tensor([flag], dtype=torch.int32, device=device)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=axis.group)
    return bool(highest.item())


def broadcast_tensors(values: Sequence[Tensor] | None, axis: Axis, device: torch.device) -> tuple[Tensor, ...]:
    """Return rank 0's tensors on every rank; the others pass None. Count, shapes and dtypes are sent too."""
    if axis.size == 1:
        assert values is not None
        return tuple(values)
    header: list[Any] = [None if values is None else [(tuple(value.shape), value.dtype) for value in values]]
    dist.broadcast_object_list(header, src=0, group=axis.group, device=device)
    if values is None:
        received = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in header[0])
    else:
        received = tuple(value.to(device).contiguous() for value in values)
    for tensor in received:
        dist.broadcast(tensor, src=0, group=axis.group)
    return received

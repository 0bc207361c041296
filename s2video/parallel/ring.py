"""Ring attention: each rank keeps its queries, passes on keys and values, and merges partial results.

Blocks of keys and values may be uneven or empty. The next block is received while the current one is computed. Torch's
experimental ring attention is not used: it assumes that all blocks have the same length, and on gloo uneven ones abort
the process. Knows no model.

Dimension letters as in `collectives`; S_q, S_k queries and keys of one call. A log-sum-exp is natural, of the scaled
logits, [B, S, H] in float32. Without keys it is −∞, and the output is zero.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError
from .backends import LIBRARIES_WITH_LSE, needs, run_with_lse
from .mesh import Axis
from .traffic import record

_CUDNN_WITH_FAULTS = 91500  # 9.15.0, as `torch.backends.cudnn.version` writes it
_SCORES = 1 << 26  # elements of QKᵀ that the plain kernel holds at a time; 256 MiB in float32

Partial = tuple[Tensor, Tensor]  # output [B, S, H, D] and its log-sum-exp [B, S, H]


@dataclass(frozen=True)
class Kernel:
    """An attention kernel that also returns the log-sum-exp: [B, H, S, D] each -> [B, H, S_q, D], [B, H, S_q].

    Attributes:
        name: the kernel's name in diffusers' attention dispatcher.
        serves: whether it supports this device, dtype and head dimension.
    """

    name: str
    run: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    serves: Callable[[torch.device, torch.dtype, int], bool]


def _cpu_flash(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False)
    return output, lse


def _cuda_flash(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False)[:2]
    return output, lse


def _cuda_cudnn(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    # with other strides the operator can return wrong values, says diffusers, which copies too
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    output, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, False)[:2]
    return output, lse.squeeze(-1) if lse.ndim == 4 else lse


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Compute attention by its definition in float32 (or float64), a few queries at a time to bound the memory."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys, values = key.to(dtype).transpose(-1, -2), value.to(dtype)
    rows = max(1, _SCORES // max(1, query.shape[0] * query.shape[1] * key.shape[2]))
    parts = []
    for part in query.split(rows, dim=2):
        scores = part.to(dtype) * query.shape[-1] ** -0.5 @ keys
        lse = scores.logsumexp(-1)
        parts.append(((scores - lse.unsqueeze(-1)).exp() @ values, lse))
    return torch.cat([output for output, _ in parts], dim=2).to(query.dtype), torch.cat([lse for _, lse in parts], 2)


def _on_cuda_in_half(device: torch.device, dtype: torch.dtype, dim: int, *, widest: int) -> bool:
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and dim % 8 == 0
        and dim <= widest
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _prefers_cudnn(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Return whether cuDNN's kernel is the fastest exact one: on Hopper, 1.7 to 2.3 times as fast as flash (FA2).

    GPUs and versions of cuDNN are those on which torch 2.13 prefers it itself; earlier versions of cuDNN had faults.
    """
    return (
        _on_cuda_in_half(device, dtype, dim, widest=128)
        and torch.cuda.get_device_capability(device) in ((9, 0), (10, 0))
        and (torch.backends.cudnn.version() or 0) > _CUDNN_WITH_FAULTS
    )


# The default is the first one that supports the tensors; a backend can be chosen by name.
KERNELS = (
    Kernel("_native_cudnn", _cuda_cudnn, _prefers_cudnn),
    Kernel("_native_flash", _cpu_flash, lambda device, dtype, dim: device.type == "cpu"),
    Kernel("_native_flash", _cuda_flash, lambda device, dtype, dim: _on_cuda_in_half(device, dtype, dim, widest=256)),
    Kernel("_native_cudnn", _cuda_cudnn, lambda device, dtype, dim: _on_cuda_in_half(device, dtype, dim, widest=128)),
    Kernel("_native_math", plain_attention, lambda device, dtype, dim: True),
)


def _library(name: str) -> Kernel:
    """Return a library's kernel, which has to be chosen by name."""

    def serves(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
        need = needs(name)
        return _on_cuda_in_half(device, dtype, dim, widest=need.widest) if need.gpu else True

    return Kernel(name, partial(run_with_lse, name), serves)


LIBRARY_KERNELS = tuple(_library(name) for name in LIBRARIES_WITH_LSE)


def named_backend(setting: str | None) -> str | None:
    """Return the backend that `model.attention_backend` or diffusers' environment variable names; None for neither.

    It is passed to diffusers with every call, because diffusers' own default belongs to the whole process, and other
    models set it too.
    """
    return setting or os.environ.get("DIFFUSERS_ATTN_BACKEND") or None


def check_backend(backend: str | None) -> None:
    """Raise InputError unless a kernel for this diffusers backend returns a log-sum-exp."""
    names = list(dict.fromkeys(kernel.name for kernel in (*KERNELS, *LIBRARY_KERNELS)))
    if backend not in (None, "native", *names):
        raise InputError(
            f"model.attention_backend (or DIFFUSERS_ATTN_BACKEND): with parallel.ring > 1, expected native or one of "
            f"{', '.join(names)}, the kernels that return a log-sum-exp, got {backend!r}; choose one of them, or "
            "parallel.ring 1"
        )


def choose_kernel(device: torch.device, dtype: torch.dtype, dim: int, backend: str | None = None) -> Kernel:
    """Return the kernel for tensors of this device, dtype and head dimension.

    Args:
        backend: a name of diffusers' dispatcher; None or "native" for the best kernel.

    Raises:
        InputError: the backend has no kernel for a ring, or does not support these tensors.
    """
    check_backend(backend)
    for kernel in KERNELS:
        if backend in (None, "native", kernel.name) and kernel.serves(device, dtype, dim):
            return kernel
    for kernel in LIBRARY_KERNELS:
        if backend == kernel.name and kernel.serves(device, dtype, dim):
            return kernel
    raise InputError(
        f"model.attention_backend: {backend} does not support {dtype} tensors with {dim} channels per head on "
        f"{device.type}; remove the setting"
    )


def fastest_kernel(device: torch.device, dtype: torch.dtype, dim: int) -> Kernel | None:
    """Return the kernel that is faster than torch's choice without a ring, if there is one for these tensors."""
    return KERNELS[0] if KERNELS[0].serves(device, dtype, dim) else None


def partial_attention(query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Partial:
    """Compute attention over some of the keys: [B, S_q, H, D] and [B, S_k, H, D] twice -> input of `merge_partial`.

    Output and log-sum-exp are float32.
    """
    if not query.numel() or not key.numel():
        empty = query.new_zeros(query.shape, dtype=torch.float32)
        return empty, torch.full_like(empty[..., 0], -torch.inf)
    output, lse = kernel.run(*(x.transpose(1, 2) for x in (query, key, value)))
    return output.transpose(1, 2).float(), lse.transpose(1, 2).float()


def merge_partial(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> Partial:
    """Merge the softmax results over two sets of keys into one over both. Associative and symmetric.

    With normalised weights e^lse and e^block_lse: out + σ(block_lse − lse) · (block_out − out). The two weights add up
    to one for logits of any size, and a part without keys (log-sum-exp −∞, output 0) changes nothing.
    """
    weight = torch.sigmoid(block_lse - lse)
    weight = weight.masked_fill(block_lse == -torch.inf, 0.0)  # −∞ − (−∞) is NaN
    return torch.lerp(out, block_out, weight.unsqueeze(-1)), torch.logaddexp(lse, block_lse)


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], axis: Axis, kernel: Kernel
) -> Partial:
    """Compute attention of this rank's queries over the keys of all ranks: [B, S_local, H, D] each -> float32 partial.

    Every rank must hold the same heads. K and V are sent R − 1 times, unconverted and without padding.

    Args:
        lengths: number of keys of each rank of the axis; `lengths[axis.rank]` is this rank's.
    """
    assert key.shape[1] == lengths[axis.rank], (key.shape, lengths, axis.rank)
    current = [key.contiguous(), value.contiguous()]
    merged: Partial | None = None
    for step in range(axis.size):
        upcoming: list[Tensor] = []
        requests: list[dist.Work] = []
        if step < axis.size - 1:
            upcoming, requests = _pass_on(current, lengths[(axis.rank - step - 1) % axis.size], axis)
        block = partial_attention(query, current[0], current[1], kernel)
        merged = block if merged is None else merge_partial(*merged, *block)
        for request in requests:
            request.wait()
        current = upcoming
    assert merged is not None
    return merged


def _pass_on(tensors: Sequence[Tensor], length: int, axis: Axis) -> tuple[list[Tensor], list[dist.Work]]:
    """Start to send K and V to the next rank, and to receive `length` tokens of each from the previous one.

    Empty tensors are not sent; both sides know which ones are empty.
    """
    assert axis.group is not None
    following = dist.get_global_rank(axis.group, (axis.rank + 1) % axis.size)
    preceding = dist.get_global_rank(axis.group, (axis.rank - 1) % axis.size)
    received = [x.new_empty(x.shape[0], length, *x.shape[2:]) for x in tensors]
    transfers = [dist.P2POp(dist.isend, x, following, axis.group) for x in tensors if x.numel()]
    if transfers:
        record("send", sum(x.nbytes for x in tensors))
    transfers += [dist.P2POp(dist.irecv, x, preceding, axis.group) for x in received if x.numel()]
    return received, dist.batch_isend_irecv(transfers) if transfers else []

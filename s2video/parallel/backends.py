"""What diffusers' attention backends need, and which of them a ring can use. Knows no model.

Ulysses gives every rank whole sequences of some heads, so each backend that runs on one rank runs under it. A ring
merges partial results, for which a backend has to return the log-sum-exp of each query.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from ..errors import InputError

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Needs:
    """What a backend needs.

    Attributes:
        gpu: whether it runs on GPUs only.
        half: whether it takes float16 and bfloat16 only, on a GPU.
        lse: whether it returns the log-sum-exp, so that a ring can use it.
        widest: channels of a head that it takes at most, in a ring.
    """

    gpu: bool = True
    half: bool = True
    lse: bool = False
    widest: int = 256


NEEDS = {
    "native": Needs(gpu=False, half=False, lse=True),
    "_native_math": Needs(gpu=False, half=False, lse=True),
    "_native_flash": Needs(gpu=False, lse=True),
    "_native_cudnn": Needs(lse=True, widest=128),
    "_native_efficient": Needs(half=False),
    "flex": Needs(gpu=False, half=False, lse=True),
    "flash": Needs(lse=True),
    "flash_hub": Needs(lse=True),
    "_flash_3": Needs(lse=True),
    "sage": Needs(lse=True, widest=128),
    "sage_hub": Needs(lse=True, widest=128),
    "xformers": Needs(half=False),
}
LIBRARIES_WITH_LSE = ("flex", "flash", "flash_hub", "_flash_3", "sage", "sage_hub")
"""Backends of other libraries that return the log-sum-exp, by diffusers' functions."""


def needs(backend: str) -> Needs:
    """Return what a backend needs; other variants of Flash and Sage than those in `NEEDS` have no ring."""
    return NEEDS.get(backend, Needs())


def check_here(backend: str, device: str, dtype: torch.dtype) -> None:
    """Raise InputError unless a backend runs on this device ("cpu" or "cuda") with this dtype, and is installed."""
    name = "model.attention_backend (or DIFFUSERS_ATTN_BACKEND)"
    known = [kind.value for kind in AttentionBackendName]
    if backend not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, got {backend!r}; choose one of these")
    if backend in ("_native_npu", "_native_xla"):
        raise InputError(f"{name}: expected a backend for CPUs or CUDA, got {backend}; remove the setting")
    if device == "cpu" and needs(backend).gpu:
        raise InputError(f"{name}: {backend} needs a GPU, got a CPU; remove the setting")
    if device != "cpu" and needs(backend).half and dtype not in _HALF:
        raise InputError(
            f"{name}: {backend} needs model.dtype bfloat16 or float16, got {str(dtype).removeprefix('torch.')}; set it"
        )
    from diffusers.models.attention_dispatch import _check_attention_backend_requirements

    try:
        _check_attention_backend_requirements(AttentionBackendName(backend))
    except RuntimeError as error:
        raise InputError(f"{name}: {' '.join(str(error).split())}") from None


def run_with_lse(backend: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention and its log-sum-exp by one of `LIBRARIES_WITH_LSE`.

    [B, H, S, D] each -> [B, H, S_q, D] and [B, H, S_q], natural and of the scaled logits.
    """
    if backend == "flex":
        return _flex(query, key, value)
    attend: Any = _AttentionBackendRegistry._backends[AttentionBackendName(backend)]
    output, lse, *_ = attend(*(x.transpose(1, 2).contiguous() for x in (query, key, value)), return_lse=True)
    return output.transpose(1, 2), lse


def _flex(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """As `run_with_lse`, by torch: diffusers 0.42 fails if it is asked for the log-sum-exp."""
    from torch.nn.attention import flex_attention as flex

    if not hasattr(flex, "AuxRequest"):  # torch before 2.9
        older: tuple[Tensor, Tensor] = flex.flex_attention(query, key, value, return_lse=True)
        return older
    output, others = flex.flex_attention(query, key, value, return_aux=flex.AuxRequest(lse=True))
    assert others.lse is not None
    return output, others.lse

"""Attention over ranks as one operator that a compiler does not look into.

A block that is compiled would otherwise be traced through collectives and kernels of other libraries, and be compiled
again whenever the plan of its tokens changes. With the operator, a block is one graph on every mesh. An operator takes
tensors only, so the attention that it runs is that of the block that runs in this thread. Knows no model.

Dimension letters as in `collectives`; M text tokens, S_local tokens of this rank.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, library

Attend = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(query, key and value of video [B, S_local, H, D], those of text [B, M, H, D] or none) -> [B, S_local + M, H, D]."""


class _Running(threading.local):
    attend: Attend | None = None


_running = _Running()


def runs_with(attend: Attend) -> None:
    """Let blocks that run in this thread from now on attend with `attend`, if they are compiled."""
    _running.attend = attend


def attention_of(attend: Attend, video: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
    """Return `attend(video, text)`; in a block that is being compiled, call the operator instead."""
    if torch.compiler.is_compiling():
        output: Tensor = _attention(list(video), list(text))
        return output
    return attend(video, text)


@library.custom_op("s2video::attention", mutates_args=())
def _attention(video: list[Tensor], text: list[Tensor]) -> Tensor:
    assert _running.attend is not None
    return _running.attend(video, text).contiguous()


@_attention.register_fake
def _(video: list[Tensor], text: list[Tensor]) -> Tensor:
    query = video[0]
    num_text = text[0].shape[1] if text else 0
    return query.new_empty(query.shape[0], query.shape[1] + num_text, *query.shape[2:])

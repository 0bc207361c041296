"""Steps that all ranks take together for as long as rank 0 wants more of them.

What the steps make is read on rank 0 alone. If its reader leaves early, as an encoder does on a full disk, the other
ranks would wait for it in the next step; so rank 0 tells them after every step how it goes on. Knows no model.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from enum import IntEnum
from typing import TypeVar

import torch
import torch.distributed as dist

from ..errors import S2VideoError
from .mesh import Axis

Step = TypeVar("Step")


class _Word(IntEnum):
    MORE = 0
    DONE = 1
    LEFT = 2


def in_step(steps: Generator[Step | None, None, None], axis: Axis, device: torch.device) -> Generator[Step, None, None]:
    """On rank 0 yield what its steps yield; on the other ranks yield nothing and take their own steps alongside.

    All ranks of the axis exhaust this together; only rank 0 may close it early, between two steps.

    Args:
        steps: rank 0's give what is wanted. The others' give anything, as often, or nothing at all on ranks that have
            no part in the steps.

    Raises:
        S2VideoError: on the other ranks, where rank 0's reader left before the end.
    """
    with closing(steps):
        if axis.rank == 0:
            yield from _lead(steps, axis, device)
        else:
            _follow(steps, axis, device)


def _lead(steps: Iterator[Step | None], axis: Axis, device: torch.device) -> Generator[Step, None, None]:
    for step in steps:
        assert step is not None
        try:
            yield step
        except GeneratorExit:  # no other exception finds all ranks between two steps
            _pass_word(_Word.LEFT, axis, device)
            raise
        _pass_word(_Word.MORE, axis, device)
    _pass_word(_Word.DONE, axis, device)


def _follow(steps: Iterator[Step | None], axis: Axis, device: torch.device) -> None:
    next(steps, None)
    while (word := _pass_word(_Word.MORE, axis, device)) is _Word.MORE:
        next(steps, None)
    if word is _Word.LEFT:
        raise S2VideoError("rank 0 stopped before the last frame; its own error says why")


def _pass_word(word: _Word, axis: Axis, device: torch.device) -> _Word:
    """Rank 0's word, on every rank."""
    if axis.size == 1:
        return word
    passed = torch.tensor([word], dtype=torch.int32, device=device)
    dist.broadcast(passed, src=0, group=axis.group)
    return _Word(int(passed.item()))

"""Steps that all ranks take together until rank 0 needs no more.

Only rank 0 uses the results of the steps. If its reader stops early, as an encoder does on a full disk, the other ranks
would wait in the next step; so rank 0 sends them a signal after every step. Knows no model.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from enum import IntEnum
from typing import TypeVar

import torch
import torch.distributed as dist

from ..errors import FollowUpError
from .mesh import Axis

Step = TypeVar("Step")


class _Signal(IntEnum):
    MORE = 0
    DONE = 1
    STOPPED = 2


def in_step(steps: Generator[Step | None, None, None], axis: Axis, device: torch.device) -> Generator[Step, None, None]:
    """Yield the results of the steps on rank 0; on other ranks take the same steps and yield nothing.

    All ranks of the axis must exhaust this together; only rank 0 may close it early, between two steps.

    Args:
        steps: the results on rank 0. On other ranks, any values, the same number of them; or none on ranks that take
            no part in the steps.

    Raises:
        FollowUpError: on the other ranks, if rank 0's reader stopped before the end.
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
        except GeneratorExit:  # only this exception arrives while all ranks are between two steps
            _share_signal(_Signal.STOPPED, axis, device)
            raise
        _share_signal(_Signal.MORE, axis, device)
    _share_signal(_Signal.DONE, axis, device)


def _follow(steps: Iterator[Step | None], axis: Axis, device: torch.device) -> None:
    next(steps, None)
    while (signal := _share_signal(_Signal.MORE, axis, device)) is _Signal.MORE:
        next(steps, None)
    if signal is _Signal.STOPPED:
        raise FollowUpError("rank 0 stopped before the last frame; see its own error for the reason")


def _share_signal(signal: _Signal, axis: Axis, device: torch.device) -> _Signal:
    """Return rank 0's signal on every rank."""
    if axis.size == 1:
        return signal
    shared = torch.tensor([signal], dtype=torch.int32, device=device)
    dist.broadcast(shared, src=0, group=axis.group)
    return _Signal(int(shared.item()))

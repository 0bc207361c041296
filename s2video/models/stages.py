"""The parts of a forward pass whose weights are fetched one after another: blocks, and the control before some of them.

Pure arithmetic; knows neither tensors nor modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Stage(NamedTuple):
    """One part of a forward pass.

    Attributes:
        block: index of the block that runs in it, or before which control is computed.
        hint: number of the hint that is computed in it; None if the block itself runs.
    """

    block: int
    hint: int | None = None


def stages_of(num_blocks: int, hints_at: Sequence[int] = ()) -> tuple[Stage, ...]:
    """Return the parts of a forward pass in running order.

    Args:
        hints_at: indices of the blocks after which a hint is added, ascending.

    >>> stages_of(2, [1])
    (Stage(block=0, hint=None), Stage(block=1, hint=0), Stage(block=1, hint=None))
    """
    numbers = {index: number for number, index in enumerate(hints_at)}
    found = []
    for index in range(num_blocks):
        found += [Stage(index, numbers[index])] if index in numbers else []
        found.append(Stage(index))
    return tuple(found)

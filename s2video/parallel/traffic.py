"""Counters of the collectives and bytes that ranks send while blocks run, to compare with theory.

Counting is off except inside `count_traffic`. Collectives record themselves, and so do fetches of a block's weights
from other ranks or from CPU memory. Exchanges once per job (objects and broadcasts) are not counted. Knows no model.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["all_to_all", "all_gather", "send", "weights"]


@dataclass
class Traffic:
    """This rank's number of collectives of each kind, and the bytes it sent to other ranks in them.

    An all-gather counts as this rank's part sent to each other rank, whatever route the backend chooses. "weights"
    counts fetches of one block: its gather in the same way, or the bytes copied to the device.
    """

    calls: Counter[Kind] = field(default_factory=Counter)
    sent: Counter[Kind] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.sent.total()


_counting: ContextVar[Traffic | None] = ContextVar("counting", default=None)


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count inside the `with`, in this thread. If nested, only the innermost one counts."""
    traffic = Traffic()
    token = _counting.set(traffic)
    try:
        yield traffic
    finally:
        _counting.reset(token)


def record(kind: Kind, sent: int) -> None:
    """Count a collective or fetch in which this rank sent `sent` bytes."""
    traffic = _counting.get()
    if traffic is not None:
        traffic.calls[kind] += 1
        traffic.sent[kind] += sent


def ulysses_minimum(tokens: Sequence[int], heads: Sequence[int], dim: int, *, shared: int = 0) -> list[int]:
    """Return the fewest elements that each rank sends in one attention layer: Q, K, V for others' heads, and outputs.

    If tokens and heads divide by P, that is 4 · tokens[r] · width · (P − 1)/P, plus the output of any text.

    Args:
        tokens, heads: number of tokens and heads of each rank.
        dim: channels per head.
        shared: number of text tokens, whose output every rank needs for all heads.
    """
    ranks = range(len(tokens))
    return [
        dim
        * (3 * tokens[r] * (sum(heads) - heads[r]) + heads[r] * (sum(tokens) - tokens[r] + shared * (len(tokens) - 1)))
        for r in ranks
    ]


def ring_minimum(blocks: Sequence[int], width: int) -> list[int]:
    """Return the elements that each rank sends in one attention layer: K and V of all blocks but the next rank's.

    If blocks are even, that is (R − 1) · 2 · blocks[r] · width.

    Args:
        blocks: number of tokens of each rank of the ring.
        width: number of heads sent, times channels per head.
    """
    total = sum(blocks)
    return [2 * width * (total - blocks[(r + 1) % len(blocks)]) for r in range(len(blocks))]

"""What the ranks send one another while blocks run: collectives and bytes, by kind, to hold against theory.

Counting is off unless `count_traffic` is entered; each collective then reports itself, and each fetch of a block's
weights, from other ranks or from CPU memory. What is exchanged once a job, objects and broadcasts, is not counted.
Knows no model.
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
    """Of this rank: how often it took part in a collective of a kind, and the bytes it sent to other ranks in them.

    An all-gather counts as its own part sent to each of the others, whatever route the backend chooses. Under
    "weights" stands a fetch of one block: its gather likewise, or the bytes copied to the device.
    """

    calls: Counter[Kind] = field(default_factory=Counter)
    sent: Counter[Kind] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.sent.total()


_counting: ContextVar[Traffic | None] = ContextVar("counting", default=None)


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count inside the `with`, in this thread; of nested counts only the innermost goes on."""
    traffic = Traffic()
    token = _counting.set(traffic)
    try:
        yield traffic
    finally:
        _counting.reset(token)


def record(kind: Kind, sent: int) -> None:
    """A collective or fetch took place in which this rank sent that many bytes."""
    traffic = _counting.get()
    if traffic is not None:
        traffic.calls[kind] += 1
        traffic.sent[kind] += sent


def ulysses_minimum(tokens: Sequence[int], heads: Sequence[int], dim: int, *, shared: int = 0) -> list[int]:
    """Elements that each rank must send in one attention layer: of Q, K and V what others' heads need, and back.

    Where everything divides, that is 4 · tokens[r] · width · (P − 1)/P, plus the text's output where there is text.

    Args:
        tokens, heads: of each rank; `dim` channels a head.
        shared: text tokens, whose output every rank needs for all heads.
    """
    ranks = range(len(tokens))
    return [
        dim
        * (3 * tokens[r] * (sum(heads) - heads[r]) + heads[r] * (sum(tokens) - tokens[r] + shared * (len(tokens) - 1)))
        for r in ranks
    ]


def ring_minimum(blocks: Sequence[int], width: int) -> list[int]:
    """Elements that each rank sends in one attention layer: keys and values of every block but the next rank's own.

    Where blocks are even, that is (R − 1) · 2 · blocks[r] · width.

    Args:
        blocks: tokens of each rank of the ring.
        width: heads times channels that travel.
    """
    total = sum(blocks)
    return [2 * width * (total - blocks[(r + 1) % len(blocks)]) for r in range(len(blocks))]

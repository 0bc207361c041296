"""Counting of what torch.compile makes of blocks: a backend that keeps each graph and runs it as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from s2video.models import compiled


@contextmanager
def counted_graphs() -> Iterator[list[Any]]:
    """Compile blocks with a backend that runs graphs unchanged, and collect them. A graph break is an error."""
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    before, compiled.BACKEND = compiled.BACKEND, keep
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        yield graphs
        breaks = torch._dynamo.utils.counters["graph_break"]
        assert not breaks, dict(breaks)
    finally:
        compiled.BACKEND = before
        torch._dynamo.reset()

"""Where the seconds of one call go on a rank: computing, copies, communication, waiting for others. CPU ranks only.

Torch's profiler gives the seconds of each operator. Collectives are timed from outside: a rank first waits at a barrier
for the others, which is waiting, and then takes part, which is communication. In a ring the transfer runs beside the
computation, so only what is left of it when its result is needed counts as communication.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

PHASES = ("compute", "copies", "communication", "waiting")
_COPIES = (
    "aten::copy_",
    "aten::cat",
    "aten::clone",
    "aten::contiguous",
    "aten::_to_copy",
    "aten::zero_",
    "aten::fill_",
)
_COLLECTIVES = ("all_to_all_single", "all_gather")


@dataclass
class _Clock:
    """Seconds at the collectives of one call."""

    group: Any  # of the barriers
    seconds: dict[str, float] = field(default_factory=lambda: {"communication": 0.0, "waiting": 0.0})

    @contextmanager
    def running(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - began

    def timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.running("waiting"):
                dist.barrier(group=self.group)
            with self.running("communication"):
                return collective(*args, **kwargs)

        return call

    def started(self, transfer: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        def call(*args: Any, **kwargs: Any) -> Sequence[Any]:
            with self.running("communication"):
                requests = list(transfer(*args, **kwargs))
            return [_Transfers(requests, self)] if requests else []

        return call


@dataclass
class _Transfers:
    """The requests of one exchange; waiting for the others comes before the rest of the transfer."""

    requests: Sequence[Any]
    clock: _Clock

    def wait(self) -> None:
        with self.clock.running("waiting"):
            dist.barrier(group=self.clock.group)
        with self.clock.running("communication"):
            for request in self.requests:
                request.wait()


def phases(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call by phase; all ranks of the world must call it at once, with as many collectives each."""
    clock = _Clock(dist.new_group())  # of its own: barriers do not disturb the order of other groups
    patches = {name: clock.timed(getattr(dist, name)) for name in _COLLECTIVES}
    patches["batch_isend_irecv"] = clock.started(dist.batch_isend_irecv)
    dist.barrier(group=clock.group)
    with mock.patch.multiple(dist, **patches), profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        run()
        total = time.perf_counter() - began
    copies = sum(op.self_cpu_time_total for op in found.key_averages() if op.key in _COPIES) / 1e6
    rest = total - copies - sum(clock.seconds.values())
    return {"compute": rest, "copies": copies, **clock.seconds}

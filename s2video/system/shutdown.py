"""How this process ends before its time: SIGTERM taken at once or kept for later, and an end without unwinding.

Knows nothing of ranks, steps and files: others say what a request has to wait for, and what must not be left behind.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

_last_acts: list[Callable[[], None]] = []


class Termination:
    """SIGTERM as this process takes it: by an exception, so that temporary files and ffmpeg go too; while `deferred`,
    as a request that is only noted.

    The same request may arrive twice, from Slurm and from torchrun. One that comes `AGAIN` seconds after the first, or
    later, is meant: it unwinds at once, deferred or not.
    """

    AGAIN = 2.0

    def __init__(self) -> None:
        self._deferred = False
        self._requested_at: float | None = None

    @property
    def requested(self) -> bool:
        return self._requested_at is not None

    @contextmanager
    def handled(self) -> Iterator["Termination"]:
        """Take SIGTERM in this way for the time of the block. Main thread only."""
        before = signal.signal(signal.SIGTERM, self._take)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a request; the block looks at `requested`. One that it did not see is granted at the block's end.

        Raises:
            SystemExit: with code 143, at the end of a block that ends well in spite of a request.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            sys.exit(128 + signal.SIGTERM)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_first = self._requested_at is None
        if self._requested_at is None:
            self._requested_at = now
        if (is_first and not self._deferred) or now - self._requested_at >= self.AGAIN:
            sys.exit(128 + number)


@contextmanager
def at_sudden_end(act: Callable[[], None]) -> Iterator[None]:
    """During the block, `end_suddenly` calls `act` before the process is gone."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def end_suddenly(code: int) -> NoReturn:
    """End the process from any thread, without unwinding: its main thread may be in a call that never returns."""
    for act in reversed(_last_acts.copy()):
        with suppress(OSError):
            act()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_at_end_of_stdin() -> None:
    """In a thread: send this process SIGTERM when standard input ends, for then whoever started it is gone."""
    while os.read(0, 1024):  # sys.stdin has a lock, which would be in the way when Python shuts down
        pass
    os.kill(os.getpid(), signal.SIGTERM)

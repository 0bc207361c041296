"""Early ends of this process: SIGTERM and SIGHUP, handled immediately or deferred, and an exit without unwinding.

Knows neither ranks, nor steps, nor files. Callers state what a request must wait for, and what to clean up.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ..errors import StoppedError

_last_acts: list[Callable[[], None]] = []


class Termination:
    """Handler of SIGTERM and SIGHUP that raises SystemExit, so that temporary files and ffmpeg are cleaned up.

    While `deferred`, a signal is only recorded. The same request may arrive twice, from Slurm and from torchrun. A
    signal `AGAIN` seconds or more after the first is a new request: it raises immediately, deferred or not. SIGHUP
    stays ignored if it is, as `nohup` wants.
    """

    AGAIN = 2.0

    def __init__(self) -> None:
        self._deferred = False
        self._requested_at: float | None = None
        self._number = int(signal.SIGTERM)

    @property
    def requested(self) -> bool:
        return self._requested_at is not None

    @contextmanager
    def handled(self) -> Iterator["Termination"]:
        """Install the handler during the block. Main thread only."""
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._take) for number in numbers}
        try:
            yield self
        except StoppedError as error:
            error.signal = self._number
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record a request during the block, which can check `requested`. Exit at its end if there was one.

        Raises:
            SystemExit: with code 128 + the signal's number, at the end of a block that succeeded after a request.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            sys.exit(128 + self._number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_first = self._requested_at is None
        if self._requested_at is None:
            self._requested_at, self._number = now, number
        if (is_first and not self._deferred) or now - self._requested_at >= self.AGAIN:
            sys.exit(128 + number)


@contextmanager
def time_limit(minutes: float | None) -> Iterator[threading.Event]:
    """Send SIGTERM to this process after some minutes in the block, once a handler for it is installed there.

    Main thread only. Yields the event that is set if this was what stopped the block; None: there is no limit.
    """
    is_over, is_done = threading.Event(), threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        if is_done.wait((minutes or 0) * 60):
            return
        while signal.getsignal(signal.SIGTERM) is before:
            if is_done.wait(0.2):
                return
        is_over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    if minutes is not None:
        threading.Thread(target=stop, daemon=True).start()
    try:
        yield is_over
    finally:
        is_done.set()


@contextmanager
def at_sudden_end(act: Callable[[], None]) -> Iterator[None]:
    """Make `end_suddenly` call `act` before the process ends, during the block."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def end_suddenly(code: int) -> NoReturn:
    """End the process from any thread without unwinding, since its main thread may be in a call that never returns."""
    for act in reversed(_last_acts.copy()):
        with suppress(OSError):
            act()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a terminal that is gone
            stream.flush()
    os._exit(code)

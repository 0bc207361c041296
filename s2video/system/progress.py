"""Progress of a loop of known length, as a bar on a terminal and as plain lines elsewhere."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Literal

from tqdm import tqdm

from .terminal import printable, say_plain

Style = Literal["auto", "bar", "plain", "none"]


class Progress:
    """Display of steps done, seconds per step, and time left; lines begin with the time of day.

    The first update sets the length of the loop.

    Args:
        name: label in front of the count.
        style: "bar", "plain" lines, "none", or "auto" for a bar if standard error is a terminal and lines otherwise.
        first: number of steps done before.
    """

    LINES = 10  # plain lines per loop, at most about this many

    def __init__(self, name: str, style: Style = "auto", *, first: int = 0) -> None:
        self._name = printable(name)
        self._first = first
        self._style = style if style != "auto" else ("bar" if sys.stderr.isatty() else "plain")
        self._bar: tqdm | None = None
        self._start = time.monotonic()
        self._printed = 0

    def __enter__(self) -> "Progress":
        self._start = time.monotonic()
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._style == "none":
            return
        if self._style == "bar":
            with suppress(OSError, ValueError):  # the terminal was closed
                if self._bar is None:
                    self._bar = tqdm(total=total, initial=self._first, desc=self._name, unit="step", file=sys.stderr)
                self._bar.update(done - self._bar.n)
            return
        due = done * self.LINES // total
        if due > self._printed or done == total:
            self._printed = due
            pace = (time.monotonic() - self._start) / (done - self._first)
            now = time.strftime("%H:%M:%S")
            say_plain(f"{now} {self._name}: step {done}/{total}, {pace:.2f} s/step, {pace * (total - done):.0f} s left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()

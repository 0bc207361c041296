"""Processes that belong to this one: children that cannot outlive it, what a process does, and the end of a whole tree.

What a process does is read from /proc, which only Linux has; elsewhere these functions return None or nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .shutdown import end_suddenly

IDLENESS = 60.0  # seconds for which processes that wait for no others may do nothing before they count as lost

_PROC = Path("/proc")
_IS_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
_PARENT_INTERVAL = 0.5  # seconds between two looks at the parent
_UNWINDING = 20.0  # seconds for this process to end by itself after its parent has ended

# Runs in the child, before the program that it becomes: between fork and exec of a process with many threads no Python
# code may run. The parent can end before prctl takes effect; then the child has another parent already.
_TIE = f"""
import ctypes, os, sys
number, parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(number))
if os.getppid() != int(parent):
    sys.exit(1)
try:
    os.execv(command[0], command)
except OSError as error:
    sys.exit(f"cannot start {{command[0]}}: {{error.strerror}}")
"""

_helpers: set[int] = set()  # processes that work for this one
_watchers: set[int] = set()  # threads of this process that only look


def tied(command: Sequence[str | bytes | Path], number: signal.Signals) -> list[str | bytes | Path]:
    """Return a command that does the same, and gets the signal when the thread that starts it has ended.

    The first item must be the path of a program. On other systems than Linux the command is returned unchanged.
    """
    if not _IS_LINUX:
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(int(number)), str(os.getpid()), *command]


def end_with_parent(say: Callable[[], None]) -> None:
    """Send this process SIGTERM as soon as its parent has ended; if it does not end then, end it. Returns at once.

    Args:
        say: tells the user about it.
    """
    parent = os.getppid()
    if _IS_LINUX:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))  # also while Python's threads cannot run

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_INTERVAL)
        _end_soon(say)

    threading.Thread(target=follow, name="parent", daemon=True).start()


def _end_soon(say: Callable[[], None]) -> None:
    """Send this process SIGTERM, and end it if that does not. Run this in a thread."""
    say()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_UNWINDING)
    end_suddenly(128 + signal.SIGTERM)


def end_with_stdin(say: Callable[[], None]) -> None:
    """Do as `end_with_parent` when standard input ends, since the process at its other end has then ended."""

    def follow() -> None:
        with suppress(OSError):
            while os.read(0, 1024):  # sys.stdin has a lock that would block Python's shutdown
                pass
        _end_soon(say)

    threading.Thread(target=follow, name="stdin", daemon=True).start()


@contextmanager
def helper(pid: int) -> Iterator[None]:
    """Count what a child does as work of this process, during the block."""
    _helpers.add(pid)
    try:
        yield
    finally:
        _helpers.discard(pid)


def only_looks() -> None:
    """Do not count what this thread does as work of this process. On a busy host it may often want to run."""
    _watchers.add(threading.get_native_id())


@dataclass(frozen=True)
class Look:
    """What a thread or process does: the letter of its state in /proc, its parent, and seconds of CPU time so far."""

    state: str
    parent: int
    seconds: float

    @property
    def is_stopped(self) -> bool:
        return self.state in "Tt"

    @property
    def works(self) -> bool:
        """Whether it runs, wants to run, or waits for a disk."""
        return self.state in "RD"


def look(pid: int) -> Look | None:
    """Return what a process does; None if there is none, or this is not Linux. The state is that of its main thread."""
    return _look(_PROC / str(pid) / "stat")


def _look(path: Path) -> Look | None:
    try:
        fields = path.read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return Look(fields[0].decode("ascii"), int(fields[1]), (int(fields[11]) + int(fields[12])) * _TICK)


def start_time(pid: int) -> str | None:
    """Return when a process started, which tells it from a later one with the same number; None if unknown."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def tree(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not; only `pid` where this is not Linux."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        if (found := _look(entry)) is not None:
            children.setdefault(found.parent, []).append(int(entry.parent.name))
    pids = [pid]
    for one in pids:
        pids.extend(children.get(one, []))
    return pids


def kill_tree(pid: int) -> None:
    """End a process and all that it started at once, also those that are stopped."""
    for one in tree(pid):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)


def has_gpu() -> bool:
    """Return whether a driver for GPUs of NVIDIA or AMD is loaded, without importing torch."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def out_of_memory_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory since the host started; None if unknown."""
    with suppress(OSError, ValueError, IndexError):
        return int((_PROC / "vmstat").read_text().split("oom_kill ")[1].split()[0])
    return None


class Idleness:
    """How long processes have done nothing: no CPU time, no thread that wants to run, no wait for a disk.

    Args:
        interval: seconds between two looks; a shorter time than a second says nothing, the clock of CPU time is coarse.
    """

    SHARE = 0.05  # of a core; below it are heartbeats and idle loops

    def __init__(self, interval: float = 0.9) -> None:
        self.seconds = 0.0
        self._interval = interval
        self._looked_at = time.monotonic()
        self._used = 0.0
        self._working: set[tuple[int, int]] = set()

    def update(self, pids: Callable[[], Sequence[int]] | None = None) -> float:
        """Look again if it is time, and return the seconds for which the processes have done nothing.

        A pause of this process, in which it could not look, counts as two intervals at most.

        Args:
            pids: None for this process and its helpers.
        """
        passed = time.monotonic() - self._looked_at
        if passed < self._interval:
            return self.seconds
        used, working = _work_of([os.getpid(), *_helpers.copy()] if pids is None else pids())
        # A thread that wakes now and then is seen at work once, one that computes twice in a row.
        works = used - self._used > self.SHARE * passed or not working.isdisjoint(self._working)
        self.seconds = 0.0 if works else self.seconds + min(passed, 2 * self._interval)
        self._looked_at, self._used, self._working = self._looked_at + passed, used, working
        return self.seconds


def _work_of(pids: Sequence[int]) -> tuple[float, set[tuple[int, int]]]:
    """Return the CPU seconds of processes, and their threads that are at work, without those that only look."""
    if not _IS_LINUX:  # of this process; where the others cannot be seen they count as working
        return time.process_time() if pids == [os.getpid()] else time.monotonic(), set()
    used, working = 0.0, set[tuple[int, int]]()
    for pid in pids:
        process = look(pid)
        used += 0.0 if process is None else process.seconds
        for path in (_PROC / str(pid)).glob("task/*/stat"):
            thread = int(path.parent.name)
            found = None if thread in _watchers else _look(path)
            if found is not None and found.works:
                working.add((pid, thread))
    return used, working

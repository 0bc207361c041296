"""Lock files that show whether a process is alive. The system releases the lock when the process ends in any way."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def held_lock(path: Path, *, patience: float = 0.0) -> Iterator[bool]:
    """Hold the lock on `path` in the block. Yield False if another process holds it. The file is kept.

    Args:
        patience: seconds to wait for the other process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + patience
    try:
        while not (is_ours := try_lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield is_ours
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether any process, including this one, holds the lock on `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file, and return whether that succeeded: not if another descriptor holds the lock."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False

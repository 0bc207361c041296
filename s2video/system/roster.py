"""The ranks of one host: each holds a lock on a file, in which it writes what it does, so that the others see its end.

The system releases a lock when a process ends in any way, so a rank that was killed is seen at once, however busy the
host is. The files lie in the folder that torchrun makes for each start; without torchrun there is no roster. Knows no
store, and no ranks of other hosts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import InputError
from . import ranks
from .processes import out_of_memory_kills

_FILE = "s2video-rank"
_BYTES = 512  # of an entry; one short write is never seen in part


@dataclass(frozen=True)
class Entry:
    """What a rank of this host wrote last.

    Attributes:
        activity: the current work, such as "denoising step 3 of 30".
        said_goodbye: it is leaving, or has left, in an orderly way.
        is_alive: its process exists.
    """

    rank: int
    pid: int
    activity: str
    said_goodbye: bool
    is_alive: bool


class Roster:
    """This rank's entry, and those of the other ranks of this host.

    Args:
        folder: with a folder for each local rank; None for a roster that knows no rank.
    """

    def __init__(self, folder: Path | None, *, rank: int = 0, local_rank: int = 0, local_size: int = 1) -> None:
        self._folder = folder
        self._rank = rank
        self._kills = out_of_memory_kills()
        self._others = [r for r in range(local_size) if r != local_rank]
        self._descriptor: int | None = None
        if folder is not None:
            with suppress(OSError):
                descriptor = os.open(self._path(local_rank), os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # a reader may hold it for a moment
                self._descriptor = descriptor
                self.write("starting")

    def write(self, activity: str, *, goodbye: bool = False) -> None:
        """Replace this rank's entry."""
        if self._descriptor is not None:
            entry = json.dumps([self._rank, os.getpid(), activity[:200], goodbye])
            with suppress(OSError):  # a full disk
                os.pwrite(self._descriptor, entry[:_BYTES].ljust(_BYTES).encode("ascii"), 0)

    def others(self) -> list[Entry]:
        """Return the entries of the other ranks that have one."""
        return [entry for local_rank in self._others if (entry := self._read(local_rank)) is not None]

    def lost(self) -> list[Entry]:
        """Return the entries of those whose process ended without a goodbye."""
        return [entry for entry in self.others() if not entry.is_alive and not entry.said_goodbye]

    def describe(self, lost: Sequence[Entry]) -> str:
        """Return which ranks ended without a goodbye, what they did last, and what can cause it, for a message."""
        reason = "killed by kill -9, a crash, or the kernel for lack of memory (see dmesg)"
        kills = out_of_memory_kills()
        if kills is not None and self._kills is not None and kills > self._kills:
            reason = "killed, and the kernel has just killed a process for lack of memory (see dmesg)"
        names = ", ".join(f"rank {entry.rank} (last at: {entry.activity})" for entry in lost)
        return f"lost {names}, which ended without a message: {reason}"

    @property
    def has_another_first(self) -> bool:
        """Whether this host has a first rank that is not this one, and ranks can see each other."""
        return self._folder is not None and 0 in self._others

    def first(self) -> Entry | None:
        """Return the entry of the host's first rank, unless that is this one, or there is none."""
        return self._read(0) if 0 in self._others else None

    def _path(self, local_rank: int) -> Path:
        assert self._folder is not None
        return self._folder / str(local_rank) / _FILE

    def _read(self, local_rank: int) -> Entry | None:
        if self._folder is None:
            return None
        try:
            descriptor = os.open(self._path(local_rank), os.O_RDONLY)
        except OSError:
            return None
        try:
            is_alive = not _is_free(descriptor)  # before the entry is read, which then is the last one
            rank, pid, activity, said_goodbye = json.loads(os.pread(descriptor, _BYTES, 0))
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)
        return Entry(int(rank), int(pid), str(activity), bool(said_goodbye), is_alive)


def own_roster() -> Roster:
    """Return the roster that torchrun's environment names, with this process in it; always the same object."""
    return _roster(ranks.error_file())


@lru_cache(maxsize=1)
def _roster(error_file: Path | None) -> Roster:
    if error_file is None:
        return Roster(None)
    folder = error_file.parent.parent  # torchrun gives each rank of the host FOLDER/LOCAL_RANK/error.json
    try:
        numbers = ranks.rank(), ranks.local_rank(), ranks.local_world_size()
    except InputError:  # reported where the ranks join
        return Roster(None)
    return Roster(folder, rank=numbers[0], local_rank=numbers[1], local_size=numbers[2])


def _is_free(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    return False

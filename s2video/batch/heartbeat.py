"""Renewal of a replica's leases while its process runs. Knows the store, not what is made."""

from __future__ import annotations

import threading

from ..errors import S2VideoError
from ..system.shutdown import end_suddenly
from ..system.terminal import say, say_error
from .interfaces import JobSource
from .store import LEASE


class Heartbeat:
    """A context in which a thread renews a replica's leases. Ends the process if a lease was lost.

    Otherwise a process that was suspended for long would write the same files as its successor.

    Attributes:
        held: the jobs that the replica expects to own.
    """

    def __init__(self, store: JobSource, owner: str) -> None:
        self.held: set[str] = set()
        self._store = store
        self._owner = owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(LEASE / 4):
            expected = self.held.copy()
            try:
                owned = self._store.renew(self._owner)
            except S2VideoError as error:
                say(error)
                continue
            lost = (expected - owned) & self.held  # a job that ended meanwhile is not lost
            if lost:
                say_error(
                    f"{self._owner} missed its heartbeat for over {LEASE:g} s and may have lost "
                    f"{', '.join(sorted(lost))} to another replica; exiting"
                )
                end_suddenly(1)

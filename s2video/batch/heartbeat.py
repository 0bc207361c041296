"""A replica's leases, renewed for as long as its process works. Knows the store, not what is made."""

from __future__ import annotations

import threading

from ..errors import S2VideoError
from ..system.shutdown import end_suddenly
from ..system.terminal import say, say_error
from .store import LEASE, Store


class Heartbeat:
    """Renews a replica's leases in a thread, for the time of a block; ends the process if one was lost meanwhile.

    A process that was stopped for long, and runs again, would else write what its successor writes.

    Attributes:
        held: the jobs that the replica believes to have.
    """

    def __init__(self, store: Store, owner: str) -> None:
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
            believed = self.held.copy()
            try:
                has = self._store.renew(self._owner)
            except S2VideoError as error:
                say(error)
                continue
            lost = (believed - has) & self.held  # one that was let go of is not lost
            if lost:
                say_error(
                    f"{self._owner} was silent for over {LEASE:g} s, and others may make "
                    f"{', '.join(sorted(lost))} now: it ends"
                )
                end_suddenly(1)

"""What a replica and a supervisor need of a batch's store, wherever it is held, and a supervisor of its replicas.

On one machine all of them use the store itself. On a cluster one process holds it, and the others ask that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .records import Record, Released


class JobSource(Protocol):
    """The store as a replica sees it; the methods are those of `Store`."""

    folder: Path

    def presence(self, owner: str) -> AbstractContextManager[object]: ...

    def draw(self, owner: str, models: Sequence[str] = ()) -> Record | None: ...

    def renew(self, owner: str) -> set[str]: ...

    def finish(self, name: str, owner: str, digests: Mapping[str, str]) -> bool: ...

    def fail(self, name: str, owner: str, error: str, **facts: Any) -> bool: ...

    def give_back(self, owner: str) -> list[str]: ...

    def step_done(self, name: str, step: int, steps: int) -> bool: ...

    def forget(self, name: str) -> None: ...


class OverseenStore(Protocol):
    """The store as a supervisor sees it; the methods are those of `Store`."""

    def owners(self) -> set[str]: ...

    def has_drawn(self, owner: str) -> bool: ...

    def release(self) -> list[Released]: ...

    def count_open(self) -> dict[str, int]: ...

    def log(self, event: str, **facts: Any) -> None: ...


@dataclass(frozen=True)
class Ending:
    """How a replica ended.

    Attributes:
        problem: why, as the end of a sentence that begins with its name; None if it ended in good order.
        code: its exit code, or minus a signal's number; None where it has none.
        reason: why the supervisor ended it, if it did.
        is_its_own: a replica like it would end in the same way if it had drawn no job yet; not so if its machine left.
    """

    problem: str | None
    code: int | None = None
    reason: str | None = None
    is_its_own: bool = True


class Replica(Protocol):
    """A replica that was started."""

    @property
    def owner(self) -> str:
        """Its name, which no other has or had."""

    def poll(self) -> Ending | None:
        """Return how it ended; None while it has not. Called several times a second."""

    def end(self, reason: str) -> None:
        """End it at once, with all its ranks."""

    def end_if_idle(self) -> None:
        """End it if it has done nothing for too long."""

    def send_signal(self, number: int) -> None:
        """Ask it to stop after the current step. Called by a signal handler, so it must return at once."""


class Crew(Protocol):
    """What starts replicas, and where."""

    @property
    def count(self) -> int:
        """How many there may be at the same time."""

    def start(self, number: int, owner: str) -> Replica:
        """Start the replica of this number, from 1."""

    def tick(self) -> None:
        """Do what is to be done several times a second, such as telling what replicas elsewhere say."""

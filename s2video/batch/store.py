"""The jobs of a batch: all replicas draw them from its state, and an event log lies next to it.

A job is waiting, running, done or failed. A replica owns a drawn job by a lease, as long as it renews the lease and its
process is alive. Knows the states of jobs, not how they are made.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.locks import held_lock, is_held
from .records import Entry, Record, Released, as_record, check_kinds
from .run_file import RESERVED
from .state_file import StateFile, state_files

LEASE = 60.0  # seconds without a renewal after which another replica can draw the job
MAX_ATTEMPTS = 3  # number of replicas that may die during one job


class Store(StateFile):
    """The jobs of one shard. Every method is a transaction; any thread and process can call it.

    Args:
        folder, shard, keeps_open: as `StateFile` takes them.
        clock: returns seconds since the epoch, for people.
        ticks: returns seconds since any moment, the same for all processes of this machine. It decides about leases, so
            it must not jump when the time is set, nor count the time that the machine sleeps.
    """

    def __init__(
        self,
        folder: Path,
        shard: tuple[int, int] | None = None,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        keeps_open: bool = False,
    ) -> None:
        super().__init__(folder, shard, keeps_open=keeps_open)
        self.lock_path = folder / f"{self._part}lock"
        self._events_path = folder / f"{self._part}events.jsonl"
        self._clock = clock
        self._ticks = ticks

    def owner_path(self, owner: str) -> Path:
        """Return the path of the lock that a replica holds while it is alive."""
        return self.folder / f"{self._part}{owner}.lock"

    @contextmanager
    def presence(self, owner: str) -> Iterator[None]:
        """Show in the block that a replica is alive; its jobs are released when its process ends in any other way."""
        path = self.owner_path(owner)
        with held_lock(path):
            yield
        path.unlink(missing_ok=True)

    def log(self, event: str, **facts: Any) -> None:
        """Append a line to the event log."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        with self._events_path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def put(
        self,
        entries: Sequence[Entry],
        again: frozenset[str],
        replaceable: frozenset[str] = frozenset(),
        staying: frozenset[str] = frozenset(),
    ) -> None:
        """Make `entries` the jobs of the batch, in this order. New ones and those in `again` are set to waiting.

        Args:
            replaceable: jobs that may replace videos that are there; so may those in `again`.
            staying: jobs that stay, with their state, after `entries`, although they are not among them.
        """
        with self._transaction() as connection:
            known = [row["name"] for row in connection.execute("SELECT name FROM jobs ORDER BY position")]
            made = {entry.name for entry in entries}
            others = [name for name in known if name not in made]
            connection.executemany("DELETE FROM jobs WHERE name = ?", [(o,) for o in others if o not in staying])
            moved = enumerate((name for name in others if name in staying), len(entries))
            connection.executemany("UPDATE jobs SET position = ? WHERE name = ?", moved)
            for position, e in enumerate(entries):
                connection.execute(
                    "INSERT INTO jobs (name, position, place, models, config, key, work, take) "
                    "VALUES (?,?,?,?,?,?,?,?) "
                    "ON CONFLICT (name) DO UPDATE SET position = excluded.position, place = excluded.place, "
                    "models = excluded.models, config = excluded.config, key = excluded.key, "
                    "work = excluded.work, take = excluded.take",
                    (e.name, position, e.place, e.models, e.config, e.key, e.work, e.take),
                )
            for name in again:
                connection.execute("DELETE FROM files WHERE job = ?", (name,))
                connection.execute(
                    "UPDATE jobs SET state = 'waiting', attempts = 0, lease_until = NULL, "
                    "started = NULL, seconds = NULL, error = NULL WHERE name = ?",
                    (name,),
                )
            allowed = [(name,) for name in again | replaceable]
            connection.executemany("INSERT OR IGNORE INTO replaceable VALUES (?)", allowed)
            self._write_checksums(connection)

    def replaceable(self) -> set[str]:
        """Return the unfinished jobs that may replace videos that are there."""
        with self._connected() as connection:
            if not self._has_table(connection, "replaceable"):
                return set()
            return {row["job"] for row in connection.execute("SELECT job FROM replaceable")}

    def set_run_file(self, path: Path) -> None:
        """Record the run file whose batch this is, so that another one is noticed, even if both are moved together."""
        relative = os.path.relpath(path.resolve(), self.folder.resolve())
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO about VALUES ('run file', ?)", (relative,))

    def draw(self, owner: str, models: Sequence[str] = ()) -> Record | None:
        """Draw the next waiting job, of one of the groups `models` if they have one. Return None if no job waits."""
        with self._transaction() as connection:
            row = self._next(connection, models)
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, owner = ?, lease_until = ?, started = ?, "
                "error = NULL WHERE name = ?",
                (owner, self._ticks() + LEASE, self._clock(), row["name"]),
            )
            drawn = connection.execute("SELECT * FROM jobs WHERE name = ?", (row["name"],)).fetchone()
            record = as_record(drawn)
        self.log("drawn", job=record.name, replica=owner, attempt=record.attempts)
        return record

    def _next(self, connection: sqlite3.Connection, models: Sequence[str]) -> sqlite3.Row | None:
        """Return the name and position of the job that `draw` takes."""
        query = "SELECT name, position FROM jobs WHERE state = 'waiting' {} ORDER BY position LIMIT 1"
        loaded = f"AND models IN ({', '.join('?' * len(models))})"
        found: sqlite3.Row | None = (
            connection.execute(query.format(loaded), tuple(models)).fetchone()
            or connection.execute(query.format("")).fetchone()
        )
        return found

    def renew(self, owner: str) -> set[str]:
        """Renew the leases of a replica, and return the jobs that it still owns.

        They include those that failed on another one of its ranks, which this one may not know yet.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET lease_until = ? WHERE state = 'running' AND owner = ?", (self._ticks() + LEASE, owner)
            )
            rows = connection.execute(
                "SELECT name FROM jobs WHERE state IN ('running', 'failed') AND owner = ?", (owner,)
            )
            return {row["name"] for row in rows}

    def finish(self, name: str, owner: str, digests: Mapping[str, str]) -> bool:
        """Mark a job as done. Return False if it no longer belongs to `owner`.

        Args:
            digests: paths of its files, below the batch's folder -> their SHA-256.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = 'done', lease_until = NULL, seconds = MAX(0, ? - started) "
                "WHERE name = ? AND state = 'running' AND owner = ?",
                (self._clock(), name, owner),
            ).rowcount
            if changed:
                is_first = not connection.execute("DELETE FROM files WHERE job = ?", (name,)).rowcount
                (attempts,) = connection.execute("SELECT attempts FROM jobs WHERE name = ?", (name,)).fetchone()
                rows = [(name, path, digest) for path, digest in sorted(digests.items())]
                connection.executemany("INSERT INTO files VALUES (?, ?, ?)", rows)
                # in the transaction, so that one process writes at a time
                # (an attempt before may have died between its lines and its commit)
                if not (is_first and attempts == 1 and self._append_checksums(digests)):
                    self._write_checksums(connection)
                connection.execute("DELETE FROM replaceable WHERE job = ?", (name,))
        if changed:
            self.log("done", job=name, replica=owner, sha256=dict(digests))
        return bool(changed)

    def fail(self, name: str, owner: str, error: str, **facts: Any) -> bool:
        """Mark a job as failed for a reason of its own. Return False if it no longer belongs to `owner`."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = 'failed', lease_until = NULL, error = ?, seconds = MAX(0, ? - started) "
                "WHERE name = ? AND state = 'running' AND owner = ?",
                (error, self._clock(), name, owner),
            ).rowcount
        if changed:
            self.log("failed", job=name, replica=owner, error=error, **facts)
        return bool(changed)

    def give_back(self, owner: str) -> list[str]:
        """Return the jobs of a replica that stops on request to the queue, without counting an attempt."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT name FROM jobs WHERE state = 'running' AND owner = ?", (owner,)
            ).fetchall()
            connection.execute(
                "UPDATE jobs SET state = 'waiting', lease_until = NULL, attempts = attempts - 1 "
                "WHERE state = 'running' AND owner = ?",
                (owner,),
            )
        names = [row["name"] for row in rows]
        for name in names:
            self.log("given back", job=name, replica=owner)
        return names

    def step_done(self, name: str, step: int, steps: int) -> bool:
        """Take note that a step of a job is done; return False if the job has to stop. A batch's jobs never have."""
        return True

    def forget(self, name: str) -> None:
        """Remove a job that was stopped because `step_done` said so."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM jobs WHERE name = ?", (name,))

    def release(self, alive: Container[str] | None = None) -> list[Released]:
        """Requeue the jobs of replicas that died or missed a renewal; fail those after `MAX_ATTEMPTS` attempts.

        Args:
            alive: live replicas; None: those that hold their locks.
        """
        columns = "name, owner, attempts, lease_until"
        now, released = self._ticks(), []
        with self._transaction() as connection:
            for row in connection.execute(f"SELECT {columns} FROM jobs WHERE state = 'running'").fetchall():
                check_kinds(row, columns.split(", "))
                if row["owner"] is None or row["lease_until"] is None:
                    raise sqlite3.DatabaseError("a job in no state that jobs have")
                is_alive = is_held(self.owner_path(row["owner"])) if alive is None else row["owner"] in alive
                if is_alive and row["lease_until"] > now:
                    continue
                error = None
                if row["attempts"] >= MAX_ATTEMPTS:
                    error = (
                        f"{row['attempts']} replicas {'missed their heartbeat' if is_alive else 'died'} during this job"
                    )
                connection.execute(
                    "UPDATE jobs SET state = ?, lease_until = NULL, error = ? WHERE name = ?",
                    ("waiting" if error is None else "failed", error, row["name"]),
                )
                released.append(Released(row["name"], row["owner"], row["attempts"], error, is_alive))
        for job in released:
            self.log("released", job=job.name, replica=job.owner, attempt=job.attempts, error=job.error)
        return released

    def begin(self) -> None:
        """Prepare a new start of the batch by a user, before its first replica.

        Releases jobs, resets the attempts of waiting ones (a batch that ended as a whole is not their fault), and
        removes the locks of dead replicas.
        """
        self.release()
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET attempts = 0 WHERE state = 'waiting'")
        for path in self.folder.glob(f"{self._part}replica-*.lock"):
            if not is_held(path):
                path.unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """Return all jobs, in order."""
        with self._connected() as connection:
            return [as_record(row) for row in connection.execute("SELECT * FROM jobs ORDER BY position")]

    def digests(self) -> dict[str, dict[str, str]]:
        """Return, for each job that is done, the paths of its files below the batch's folder -> their SHA-256."""
        with self._connected() as connection:
            found: dict[str, dict[str, str]] = {}
            for row in connection.execute("SELECT job, path, sha256 FROM files"):
                found.setdefault(row["job"], {})[row["path"]] = row["sha256"]
            return found

    def count_open(self) -> dict[str, int]:
        """Return how many jobs are waiting and running; states without jobs are left out."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT state, COUNT(*) AS number FROM jobs WHERE state IN ('waiting', 'running') GROUP BY state"
            )
            return {row["state"]: row["number"] for row in rows}

    def owners(self) -> set[str]:
        """Return the replicas whose job is running."""
        with self._connected() as connection:
            return {row["owner"] for row in connection.execute("SELECT owner FROM jobs WHERE state = 'running'")}

    def has_drawn(self, owner: str) -> bool:
        """Return whether a replica was the last to draw some job."""
        with self._connected() as connection:
            row = connection.execute("SELECT 1 FROM jobs WHERE owner = ? LIMIT 1", (owner,)).fetchone()
        return row is not None


def find_stores(folder: Path) -> list[Store]:
    """Return the stores in a batch's folder: one, or one per shard. Raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of a batch or its run file, got none; check the path")
    stores = [Store(folder, shard) for shard in state_files(folder).values()]
    for store in stores:
        store.check()
    if not stores:
        raise InputError(f"{folder}: expected the folder of a batch, got one without {RESERVED}sqlite; check the path")
    return stores

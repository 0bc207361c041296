"""The state of a batch: one SQLite file that all of its replicas draw jobs from, an event log and checksums beside it.

A job waits, runs, is done or has failed. Who draws one has it by lease: for as long as it renews the lease, and its
process lives. It knows what became of jobs, not how they are made.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, S2VideoError
from ..system.files import atomic_path
from .locks import is_held
from .run_file import RESERVED

State = Literal["waiting", "running", "done", "failed"]
LEASE = 60.0  # seconds without a renewal after which another replica may have the job
MAX_ATTEMPTS = 3  # replicas that may die of one job

SCHEMA_VERSION = 1  # kept as user_version of the SQLite file; older files have 0 and the same tables

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY,          -- of its file, below the batch's folder
    position INTEGER NOT NULL,      -- the order in which jobs are drawn
    place TEXT NOT NULL,            -- where the shot stands, for people
    models TEXT NOT NULL,           -- jobs of one group share their loaded models
    config TEXT NOT NULL,           -- JSON, all that makes the video
    key TEXT NOT NULL,              -- digest of all that determines its pixels
    work REAL,                      -- in proportion to other jobs', by the cost model
    state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    owner TEXT,                     -- the replica that has it, or had it last
    lease_until REAL,
    started REAL,                   -- seconds since the epoch
    seconds REAL,                   -- from drawn to done
    error TEXT
);
CREATE TABLE IF NOT EXISTS files (
    job TEXT NOT NULL REFERENCES jobs(name) ON DELETE CASCADE,
    path TEXT NOT NULL,             -- below the batch's folder
    sha256 TEXT NOT NULL,
    PRIMARY KEY (job, path)
);
"""


@dataclass(frozen=True)
class Entry:
    """A job as it is put into the store; see the columns' comments."""

    name: str
    place: str
    models: str
    config: str
    key: str
    work: float | None


@dataclass(frozen=True)
class Record(Entry):
    """A job as the store has it."""

    state: State
    attempts: int
    owner: str | None
    started: float | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True)
class Released:
    """A job that its replica left behind: back in the queue, or failed with this error."""

    name: str
    owner: str
    attempts: int
    error: str | None


class Store:
    """One shard's jobs. Every method is a transaction of its own; any thread and process may call it.

    Args:
        folder: the batch's.
        shard: (i, n) of a batch that n machines share; None for the whole batch.
        clock: seconds since the epoch.
    """

    def __init__(
        self, folder: Path, shard: tuple[int, int] | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        part = RESERVED if shard is None else f"{RESERVED}{shard[0]}-of-{shard[1]}."
        self.folder = folder
        self.path = folder / f"{part}sqlite"
        self.checksums_path = folder / f"{part}sha256"
        self.lock_path = folder / f"{part}lock"
        self._events_path = folder / f"{part}events.jsonl"
        self._part = part
        self._clock = clock
        self._is_shared = shard is not None

    def create(self) -> None:
        """Make the file, if it is not there. Raises InputError where that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._connected() as connection:
                # shards may lie on a network's file system, which WAL's shared memory does not reach across
                connection.execute(f"PRAGMA journal_mode = {'DELETE' if self._is_shared else 'WAL'}")
                self._check_version(connection)
                connection.executescript(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (OSError, S2VideoError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.path}: cannot be used as a batch's state ({error}): choose another folder"
            ) from None

    def check(self) -> None:
        """Raise InputError for a file that another version of s2video wrote."""
        with self._connected() as connection:
            self._check_version(connection)

    def _check_version(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{self.path}: expected a batch of schema {SCHEMA_VERSION} or older, got {version}: use the newer "
                "s2video that wrote it, or another folder"
            )

    def owner_path(self, owner: str) -> Path:
        """The lock that a replica holds while it lives."""
        return self.folder / f"{self._part}{owner}.lock"

    def log(self, event: str, **facts: Any) -> None:
        """Append a line to the event log."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        with self._events_path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def put(self, entries: Sequence[Entry], again: frozenset[str]) -> None:
        """Make `entries` the jobs of the batch, in their order; those in `again`, and new ones, wait."""
        with self._transaction() as connection:
            known = {row["name"] for row in connection.execute("SELECT name FROM jobs")}
            kept = {entry.name for entry in entries}
            connection.executemany("DELETE FROM jobs WHERE name = ?", [(name,) for name in known - kept])
            for position, e in enumerate(entries):
                connection.execute(
                    "INSERT INTO jobs (name, position, place, models, config, key, work) VALUES (?,?,?,?,?,?,?) "
                    "ON CONFLICT (name) DO UPDATE SET position = excluded.position, place = excluded.place, "
                    "models = excluded.models, config = excluded.config, key = excluded.key, "
                    "work = excluded.work",
                    (e.name, position, e.place, e.models, e.config, e.key, e.work),
                )
            for name in again:
                connection.execute("DELETE FROM files WHERE job = ?", (name,))
                connection.execute(
                    "UPDATE jobs SET state = 'waiting', attempts = 0, lease_until = NULL, "
                    "started = NULL, seconds = NULL, error = NULL WHERE name = ?",
                    (name,),
                )
            self._write_checksums(connection)

    def draw(self, owner: str, models: str | None) -> Record | None:
        """Take the next job that waits, of the group `models` if there is one; None where no job waits."""
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT name FROM jobs WHERE state = 'waiting' ORDER BY models != ?, position LIMIT 1", (models or "",)
            ).fetchone()
            if row is None:
                return None
            now = self._clock()
            connection.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, owner = ?, lease_until = ?, started = ?, "
                "error = NULL WHERE name = ?",
                (owner, now + LEASE, now, row["name"]),
            )
            drawn = connection.execute("SELECT * FROM jobs WHERE name = ?", (row["name"],)).fetchone()
        self.log("drawn", job=drawn["name"], replica=owner, attempt=drawn["attempts"])
        return _record(drawn)

    def renew(self, owner: str) -> set[str]:
        """Prolong the leases of a replica; returns the jobs that it has."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET lease_until = ? WHERE state = 'running' AND owner = ?", (self._clock() + LEASE, owner)
            )
            rows = connection.execute("SELECT name FROM jobs WHERE state = 'running' AND owner = ?", (owner,))
            return {row["name"] for row in rows}

    def finish(self, name: str, owner: str, digests: Mapping[str, str]) -> bool:
        """The job is done: its files, below the batch's folder, with their SHA-256. False if it is not the owner's."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = 'done', lease_until = NULL, seconds = ? - started "
                "WHERE name = ? AND state = 'running' AND owner = ?",
                (self._clock(), name, owner),
            ).rowcount
            if changed:
                rows = [(name, path, digest) for path, digest in digests.items()]
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
                self._write_checksums(connection)  # inside: the last to write it has seen all
        if changed:
            self.log("done", job=name, replica=owner, sha256=dict(digests))
        return bool(changed)

    def fail(self, name: str, owner: str, error: str, **facts: Any) -> bool:
        """The job cannot be made, for a reason that is its own. False if it is not the owner's."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = 'failed', lease_until = NULL, error = ?, seconds = ? - started "
                "WHERE name = ? AND state = 'running' AND owner = ?",
                (error, self._clock(), name, owner),
            ).rowcount
        if changed:
            self.log("failed", job=name, replica=owner, error=error, **facts)
        return bool(changed)

    def give_back(self, owner: str) -> list[str]:
        """A replica that ends as it was told to leaves its jobs to the next start; that is no attempt."""
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

    def release(self) -> list[Released]:
        """Take jobs back from replicas that died, or did not renew their lease; one that killed too many fails."""
        now, released = self._clock(), []
        with self._transaction() as connection:
            for row in connection.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall():
                is_alive = is_held(self.owner_path(row["owner"]))
                if is_alive and row["lease_until"] > now:
                    continue
                error = None
                if row["attempts"] >= MAX_ATTEMPTS:
                    error = f"{row['attempts']} replicas {'fell silent' if is_alive else 'died'} while they made it"
                connection.execute(
                    "UPDATE jobs SET state = ?, lease_until = NULL, error = ? WHERE name = ?",
                    ("waiting" if error is None else "failed", error, row["name"]),
                )
                released.append(Released(row["name"], row["owner"], row["attempts"], error))
        for job in released:
            self.log("released", job=job.name, replica=job.owner, attempt=job.attempts, error=job.error)
        return released

    def begin(self) -> None:
        """A new start, by a person, before its first replica: attempts that ended with the batch as a whole do not
        count, and dead replicas' locks are removed."""
        self.release()
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET attempts = 0 WHERE state = 'waiting'")
        for path in self.folder.glob(f"{self._part}replica-*.lock"):
            if not is_held(path):
                path.unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """All jobs, in their order."""
        with self._connected() as connection:
            return [_record(row) for row in connection.execute("SELECT * FROM jobs ORDER BY position")]

    def digests(self) -> dict[str, dict[str, str]]:
        """Of each job that is done, its files, below the batch's folder, and their SHA-256."""
        with self._connected() as connection:
            found: dict[str, dict[str, str]] = {}
            for row in connection.execute("SELECT job, path, sha256 FROM files"):
                found.setdefault(row["job"], {})[row["path"]] = row["sha256"]
            return found

    def _write_checksums(self, connection: sqlite3.Connection) -> None:
        """As `sha256sum --check` reads them, from inside the batch's folder."""
        rows = connection.execute("SELECT path, sha256 FROM files ORDER BY path").fetchall()
        with atomic_path(self.checksums_path) as temporary:
            temporary.write_text("".join(f"{row['sha256']}  {row['path']}\n" for row in rows), encoding="utf-8")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Raises S2VideoError for all that SQLite refuses: a full disk, a damaged file, a lock that is never free."""
        try:
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            try:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA foreign_keys = ON")
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise S2VideoError(f"{self.path}: {error}: look at the disk and its free space") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _record(row: sqlite3.Row) -> Record:
    return Record(**{name: row[name] for name in Record.__dataclass_fields__})


def find_stores(folder: Path) -> list[Store]:
    """The stores of a batch's folder: one, or one a shard. Raises InputError where there is none."""
    stores = []
    for path in sorted(folder.glob(f"{RESERVED}*sqlite")):
        number, _, count = path.name.removeprefix(RESERVED).removesuffix("sqlite").rstrip(".").partition("-of-")
        stores.append(Store(folder, (int(number), int(count)) if number else None))
        stores[-1].check()
    if not stores:
        raise InputError(f"{folder}: no batch was started there (no {RESERVED}sqlite): give a batch's folder")
    return stores

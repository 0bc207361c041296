"""The server's jobs: a batch's store, with a second table of what clients asked for and how far it is.

The store decides what is drawn, by whom, and whether it is done; this module adds progress and cancellation. All
of it is in one SQLite file, so a restart loses nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..batch.records import Released, State
from ..batch.store import Store
from ..errors import InputError
from .jobs import SELECT_JOBS, Job, Request, as_job, find_job

Order = Literal["asc", "desc"]

IMAGES = "images"  # the folder of clients' images, below the server's
_MOST_PASSES = 8  # newer jobs that may be drawn before one whose model is not loaded
_PROGRESS_EVERY = 0.5  # seconds between two writes of a job's progress

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY,            -- what clients call it, and the name of its files; ids sort by arrival
    job TEXT NOT NULL,              -- name in the table jobs
    created REAL NOT NULL,          -- seconds since the epoch
    ended REAL,
    model TEXT NOT NULL,            -- the name that the operator gave it
    shown TEXT NOT NULL,            -- JSON: what a client reads back, such as prompt, size, seconds
    digest TEXT NOT NULL,           -- of the whole request
    idempotency_key TEXT UNIQUE,
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0,
    first_step INTEGER,             -- of this attempt, which may have resumed
    first_step_at REAL,
    last_step_at REAL,
    is_cancelled INTEGER NOT NULL DEFAULT 0
);
"""


class FullError(Exception):
    """The queue holds as many jobs as it may."""


class OtherRequestError(Exception):
    """An idempotency key is used for another request."""


class JobQueue(Store):
    """The store of a server's folder. As with `Store`, any thread and process can call every method."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._written: dict[str, float] = {}

    def create(self) -> None:
        """Create the tables if they are missing. Raises InputError if this is impossible."""
        super().create()
        with self._connected() as connection:
            connection.executescript(_SCHEMA)

    def submit(self, request: Request, *, most: int) -> Job:
        """Queue a request; return the earlier job of the same idempotency key, if there is one.

        Args:
            most: number of jobs that may wait.

        Raises:
            FullError: so many wait already.
            OtherRequestError: the key belongs to another request.
        """
        with self._transaction() as connection:
            known = connection.execute(
                "SELECT id, digest FROM requests WHERE idempotency_key = ?", (request.idempotency_key,)
            ).fetchone()
            if known is None:
                self._insert(connection, request, most)
            elif known["digest"] != request.digest:
                raise OtherRequestError
        found = self.find(request.id if known is None else known["id"])
        if found is None:  # it was deleted meanwhile
            raise InputError("the job was deleted while it was queued")
        return found

    def _insert(self, connection: sqlite3.Connection, request: Request, most: int) -> None:
        (waiting,) = connection.execute("SELECT COUNT(*) FROM jobs WHERE state = 'waiting'").fetchone()
        if waiting >= most:
            raise FullError
        (position,) = connection.execute("SELECT COALESCE(MAX(position), 0) + 1 FROM jobs").fetchone()
        e = request.entry
        connection.execute(
            "INSERT INTO jobs (name, position, place, models, config, key, work) VALUES (?,?,?,?,?,?,?)",
            (e.name, position, e.place, e.models, e.config, e.key, e.work),
        )
        connection.execute(
            "INSERT INTO requests (id, job, created, model, shown, digest, idempotency_key, steps) "
            "VALUES (?,?,?,?,?,?,?,?)",
            (
                *(request.id, e.name, time.time(), request.model, json.dumps(dict(request.shown))),
                *(request.digest, request.idempotency_key, request.steps),
            ),
        )

    def _next(self, connection: sqlite3.Connection, models: Sequence[str]) -> sqlite3.Row | None:
        """Return as `Store._next`, but the oldest job when many newer ones were drawn before it.

        A batch ends, so there every job has its turn. Here, jobs for a loaded model could keep the others waiting
        without end.
        """
        oldest, found = super()._next(connection, ()), super()._next(connection, models)
        if oldest is None or found is None or oldest["name"] == found["name"]:
            return oldest
        (passes,) = connection.execute(
            "SELECT COUNT(*) FROM jobs WHERE state IN ('running', 'done', 'failed') AND position > ?",
            (oldest["position"],),
        ).fetchone()
        return found if passes < _MOST_PASSES else oldest

    def find(self, name: str) -> Job | None:
        """Return a job by its id; None if there is none, or it was cancelled."""
        with self._connected() as connection:
            return find_job(connection, name)

    def page(self, *, after: str | None, limit: int, order: Order) -> tuple[list[Job], bool]:
        """Return up to `limit` jobs by the order of their arrival, and whether more follow.

        Args:
            after: id of the last job of the page before, which may have been deleted meanwhile.
        """
        sign = ">" if order == "asc" else "<"
        with self._connected() as connection:
            rows = connection.execute(
                f"{SELECT_JOBS} WHERE NOT requests.is_cancelled AND (? IS NULL OR requests.id {sign} ?) "
                f"ORDER BY requests.id {order} LIMIT ?",
                (after, after, limit + 1),
            ).fetchall()
            return [as_job(connection, row) for row in rows[:limit]], len(rows) > limit

    def remove(self, name: str) -> Job | None:
        """Cancel a job, or forget one that has ended; return it as it was, None if there is none.

        One that runs is stopped by its replica after the step; its row and its files go then.
        """
        found = self.find(name)
        if found is None:
            return None
        with self._transaction() as connection:
            (state,) = connection.execute("SELECT state FROM jobs WHERE name = ?", (found.job,)).fetchone()
            if state == "running":
                connection.execute("UPDATE requests SET is_cancelled = 1, idempotency_key = NULL WHERE id = ?", (name,))
            else:
                self._forget(connection, found.job)
        self.log("removed", job=found.job, state=state)
        return found

    def count(self) -> dict[State, int]:
        """Return the number of jobs in each state."""
        with self._connected() as connection:
            counts: dict[State, int] = {"waiting": 0, "running": 0, "done": 0, "failed": 0}
            counts |= dict(map(tuple, connection.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state")))
            return counts

    def pace(self, model: str, work: Callable[[Mapping[str, Any]], float]) -> float | None:
        """Return the seconds per unit of work of a model's last finished videos; None if there are none.

        Args:
            work: takes what a job shows.
        """
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT shown, seconds FROM requests JOIN jobs ON jobs.name = requests.job "
                "WHERE state = 'done' AND model = ? ORDER BY id DESC LIMIT 5",
                (model,),
            ).fetchall()
        paces = sorted(row["seconds"] / work(json.loads(row["shown"])) for row in rows)
        return paces[len(paces) // 2] if paces else None

    def totals(self) -> tuple[int, float]:
        """Return the denoising steps of all jobs, and the seconds that those took which are done."""
        with self._connected() as connection:
            (steps,) = connection.execute("SELECT COALESCE(SUM(step), 0) FROM requests").fetchone()
            (seconds,) = connection.execute(
                "SELECT COALESCE(SUM(seconds), 0) FROM jobs WHERE state = 'done'"
            ).fetchone()
            return int(steps), float(seconds)

    def step_done(self, name: str, step: int, steps: int) -> bool:
        """Record a job's progress; return False if it was cancelled and has to stop."""
        now = time.time()
        if 0 < step < steps and now - self._written.get(name, 0.0) < _PROGRESS_EVERY:
            return True
        self._written = {name: now}
        with self._transaction() as connection:
            connection.execute(
                "UPDATE requests SET step = ?, steps = ?, last_step_at = ?, first_step = COALESCE(first_step, ?), "
                "first_step_at = COALESCE(first_step_at, ?) WHERE job = ?",
                (step, steps, now, step, now, name),
            )
            return not _is_cancelled(connection, name)

    def is_cancelled(self, name: str) -> bool:
        """Return whether a client has deleted the job."""
        with self._connected() as connection:
            return _is_cancelled(connection, name)

    def forget(self, name: str) -> None:
        """Remove a job that was cancelled and has stopped."""
        with self._transaction() as connection:
            self._forget(connection, name)
        self.log("cancelled", job=name)

    def release(self, alive: Container[str] | None = None) -> list[Released]:
        """Requeue the jobs of dead replicas, as `Store.release`; those that were cancelled are forgotten instead."""
        released = super().release(alive)
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT job FROM requests JOIN jobs ON jobs.name = requests.job "
                "WHERE is_cancelled AND jobs.state != 'running'"
            ).fetchall()
            for row in rows:
                self._forget(connection, row["job"])
            connection.execute(
                "UPDATE requests SET step = 0, first_step = NULL, first_step_at = NULL WHERE first_step IS NOT NULL "
                "AND job IN (SELECT name FROM jobs WHERE state = 'waiting')"
            )
            connection.execute(
                "UPDATE requests SET ended = ? WHERE ended IS NULL "
                "AND job IN (SELECT name FROM jobs WHERE state IN ('done', 'failed'))",
                (time.time(),),
            )
        forgotten = {row["job"] for row in rows}
        return [job for job in released if job.name not in forgotten]

    def drop_image(self, path: Path) -> None:
        """Remove an image that a client sent, unless a job uses it."""
        with self._transaction() as connection:  # which no submission can interrupt
            if not _uses_image(connection, path.name):
                path.unlink(missing_ok=True)

    def drop_images(self) -> None:
        """Remove images of requests that a kill interrupted. For the start of a server."""
        for path in (self.folder / IMAGES).glob("*"):
            self.drop_image(path)

    def remove_files(self, name: str) -> None:
        """Remove all files of a job; `name` is that of its video below the server's folder."""
        video = self.folder / name
        for path in sorted(video.parent.glob(f"{video.stem}*")):
            if path.is_dir():
                for frame in path.iterdir():
                    frame.unlink(missing_ok=True)
                path.rmdir()
            else:
                path.unlink(missing_ok=True)

    def _forget(self, connection: sqlite3.Connection, name: str) -> None:
        """Remove a job with its files."""
        row = connection.execute("SELECT shown FROM requests WHERE job = ?", (name,)).fetchone()
        connection.execute("DELETE FROM requests WHERE job = ?", (name,))
        connection.execute("DELETE FROM jobs WHERE name = ?", (name,))
        self.remove_files(name)
        image = None if row is None else json.loads(row["shown"]).get("image")
        if image is not None:
            (self.folder / IMAGES / image).unlink(missing_ok=True)


class Glance:
    """Looks at single jobs, on a connection that stays open, in a tenth of the time of `JobQueue.find`.

    For one thread. Reading never waits for writers.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._connection: sqlite3.Connection | None = None

    def find(self, name: str) -> Job | None:
        """Return as `JobQueue.find`, and raise as it does."""
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self._queue.path, timeout=0, isolation_level=None)
                self._connection.row_factory = sqlite3.Row
            return find_job(self._connection, name)
        except sqlite3.Error:  # `JobQueue.find` waits, or says what is wrong
            self.close()
            return self._queue.find(name)

    def close(self) -> None:
        """Close the connection; the next look opens another one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _uses_image(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM requests WHERE json_extract(shown, '$.image') = ? LIMIT 1"
    return connection.execute(query, (name,)).fetchone() is not None


def _is_cancelled(connection: sqlite3.Connection, name: str) -> bool:
    row = connection.execute("SELECT is_cancelled FROM requests WHERE job = ?", (name,)).fetchone()
    return row is None or bool(row["is_cancelled"])

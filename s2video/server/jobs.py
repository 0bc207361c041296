"""Requests for the queue, and jobs as clients see them, read from the queue's tables."""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..batch.records import Entry, State

Phase = Literal["waiting", "loading", "denoising", "decoding", "done", "failed"]

SELECT_JOBS = (
    "SELECT requests.*, jobs.state, jobs.error, jobs.started, jobs.seconds, jobs.position "
    "FROM requests JOIN jobs ON jobs.name = requests.job"
)


@dataclass(frozen=True)
class Request:
    """What a client asked for, before it is queued."""

    id: str
    model: str
    entry: Entry
    shown: Mapping[str, Any]
    steps: int
    digest: str
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Job:
    """A queued request and its state.

    Attributes:
        ahead: number of jobs that are drawn before this one; 0 unless it waits.
        seconds_left: of denoising, by the pace so far; None while that is not known.
    """

    id: str
    job: str
    created: float
    ended: float | None
    model: str
    shown: Mapping[str, Any]
    state: State
    error: str | None
    step: int
    steps: int
    ahead: int
    seconds_left: float | None

    @property
    def phase(self) -> Phase:
        """What is happening to it."""
        if self.state == "waiting":
            return "waiting"
        if self.state == "running":
            return "loading" if self.step == 0 else "denoising" if self.step < self.steps else "decoding"
        return self.state

    @property
    def progress(self) -> int:
        """Per cent: denoising is 0 to 95 by its steps, decoding 95 to 100."""
        if self.state == "done":
            return 100
        return 95 * self.step // self.steps if self.state == "running" and self.steps else 0


def new_id() -> str:
    """Return an id for a request; later ones sort after earlier ones."""
    return f"video_{time.time_ns():016x}{secrets.token_hex(6)}"


def is_id(text: str) -> bool:
    """Return whether a text has the form of an id."""
    return re.fullmatch(r"video_[0-9a-f]{28}", text) is not None


def without_folders(message: str) -> str:
    """Return a message for clients, in which paths are names."""
    return re.sub(r"(?<![\w/])/(?:[^\s/:'\"]+/)+", "", message)


def find_job(connection: sqlite3.Connection, name: str) -> Job | None:
    """Return a job by its id; None if there is none, or it was cancelled."""
    row = connection.execute(f"{SELECT_JOBS} WHERE requests.id = ? AND NOT requests.is_cancelled", (name,)).fetchone()
    return None if row is None else as_job(connection, row)


def as_job(connection: sqlite3.Connection, row: sqlite3.Row) -> Job:
    """Return the job of a row of `SELECT_JOBS`."""
    ahead = 0
    if row["state"] == "waiting":
        (ahead,) = connection.execute(
            "SELECT COUNT(*) FROM jobs WHERE state = 'waiting' AND position < ?", (row["position"],)
        ).fetchone()
    left = None
    done = row["step"] - (row["first_step"] or 0)
    if row["state"] == "running" and done > 0:
        left = (row["last_step_at"] - row["first_step_at"]) / done * (row["steps"] - row["step"])
    ended = row["ended"]
    if row["state"] in ("done", "failed"):
        ended = ended or (row["started"] or row["created"]) + (row["seconds"] or 0.0)
    plain = {name: row[name] for name in ("id", "job", "created", "model", "state")}
    return Job(
        **plain,
        error=None if row["error"] is None else without_folders(row["error"]),
        ended=ended,
        shown=json.loads(row["shown"]),
        step=row["step"],
        steps=row["steps"],
        ahead=ahead,
        seconds_left=left,
    )

"""What a batch's store holds: the tables of its SQLite file, and a job as a row of them. Knows no transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args

State = Literal["waiting", "running", "done", "failed"]

SCHEMA_VERSION = 1  # user_version of the SQLite file; older files have 0 and the same tables

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY,          -- name of its file, below the batch's folder
    position INTEGER NOT NULL,      -- jobs are drawn in this order
    place TEXT NOT NULL,            -- where the shot was defined, for messages
    models TEXT NOT NULL,           -- jobs of one group share their loaded models
    config TEXT NOT NULL,           -- JSON, all settings of the video
    key TEXT NOT NULL,              -- digest of all that determines its pixels
    work REAL,                      -- predicted cost, relative to other jobs
    state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    owner TEXT,                     -- the current or last replica
    lease_until REAL,               -- seconds of the monotonic clock of this machine
    started REAL,                   -- seconds since the epoch
    seconds REAL,                   -- from draw to end
    error TEXT,
    take TEXT                       -- JSON, its shot and version (see takes.py); NULL: an older s2video put it here
);
CREATE TABLE IF NOT EXISTS files (
    job TEXT NOT NULL REFERENCES jobs(name) ON DELETE CASCADE,
    path TEXT NOT NULL,             -- below the batch's folder
    sha256 TEXT NOT NULL,
    PRIMARY KEY (job, path)
);
-- what is asked several times a second must not depend on the number of finished jobs
CREATE INDEX IF NOT EXISTS jobs_in_order ON jobs (state, position);
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (owner, state);
CREATE TABLE IF NOT EXISTS replaceable (  -- videos on disk that their jobs may replace, as an earlier start found out
    job TEXT PRIMARY KEY REFERENCES jobs(name) ON DELETE CASCADE
);
CREATE TABLE IF NOT EXISTS about (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Entry:
    """A job to add to the store; the columns' comments describe the fields."""

    name: str
    place: str
    models: str
    config: str
    key: str
    work: float | None
    take: str | None = None


@dataclass(frozen=True, kw_only=True)
class Record(Entry):
    """A job in the store, with its state."""

    state: State
    attempts: int
    owner: str | None
    started: float | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True)
class Released:
    """A job whose replica died or, if it `is_alive`, lost it. It waits again, or has failed with `error`."""

    name: str
    owner: str
    attempts: int
    error: str | None
    is_alive: bool


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("name", "place", "models", "config", "key"), str),
    **dict.fromkeys(("work", "started", "seconds", "lease_until"), (int, float, NoneType)),
    **dict.fromkeys(("owner", "error"), (str, NoneType)),
    "attempts": int,
}


def check_kinds(row: sqlite3.Row, names: Iterable[str]) -> None:
    """Raise sqlite3.DatabaseError if values of these columns have other types, which SQLite allows."""
    for name in names:
        if not isinstance(row[name], _KINDS[name]):
            raise sqlite3.DatabaseError(f"{name} of a job has the type {type(row[name]).__name__}")


def as_record(row: sqlite3.Row) -> Record:
    """Return a row as a record. Raises sqlite3.DatabaseError for values of other types, which SQLite allows."""
    if missing := {*_KINDS, "state"} - set(row.keys()):
        raise sqlite3.DatabaseError(f"a job has no {min(missing)}")
    check_kinds(row, _KINDS)
    take = row["take"] if "take" in row.keys() else None  # noqa: SIM118, a row is no mapping
    if not isinstance(take, str | None):
        raise sqlite3.DatabaseError(f"the take of a job has the type {type(take).__name__}")
    is_owned = row["owner"] is not None and row["lease_until"] is not None
    if row["state"] not in get_args(State) or (row["state"] == "running" and not is_owned):
        raise sqlite3.DatabaseError("a job in no state that jobs have")
    return Record(take=take, **{name: row[name] for name in Record.__dataclass_fields__ if name != "take"})

"""The status of a batch for `s2video status`: jobs that are done, running or failed, and the time left.

Reads the store, or the stores of all shards, without changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ..system.locks import is_held
from ..system.terminal import printable
from .picks import JudgedTake, ShotTakes, shots_of, takes_of
from .plan import spoken
from .records import Record, State
from .store import Store, find_stores


@dataclass(frozen=True)
class Status:
    """The status of a batch.

    Attributes:
        records: jobs of all shards.
        alive: number of live replicas.
        stale: number of running jobs whose replica has died; the next start makes them again.
        seconds_left: predicted time; None if unknown.
        takes: what each job is of the run file, and what was decided about it.
        files: paths of what each finished job wrote, by its name.
    """

    folder: Path
    records: tuple[Record, ...]
    alive: int
    stale: int
    seconds_left: float | None
    takes: tuple[JudgedTake, ...] = ()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def count(self, state: str) -> int:
        return sum(record.state == state for record in self.records)

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state, those without jobs too."""
        return {state: self.count(state) for state in get_args(State)}


def read_status(folder: Path, *, now: float | None = None) -> Status:
    """Read the status of the batch in a folder. Raises InputError if there is none."""
    stores = [(store, store.records()) for store in find_stores(folder)]
    records = [(store, record) for store, own in stores for record in own]
    owners = {(s.path, r.owner): _is_alive(s, r) for s, r in records if r.state == "running"}
    stale = sum(not owners[s.path, r.owner] for s, r in records if r.state == "running")
    alive = sum(owners.values())
    jobs = tuple(record for _, record in records)
    left = _seconds_left(jobs, alive, time.time() if now is None else now)
    files = {name: list(paths) for store, _ in stores for name, paths in store.digests().items()}
    return Status(folder, jobs, alive, stale, left, tuple(takes_of(folder, stores)), files)


def _is_alive(store: Store, record: Record) -> bool:
    return record.owner is not None and is_held(store.owner_path(record.owner))


def _seconds_left(records: Sequence[Record], alive: int, now: float) -> float | None:
    """Scale the measured times of done jobs by the work of the remaining ones, divided by the live replicas."""
    done = [r for r in records if r.state == "done" and r.seconds is not None]
    rest = [r for r in records if r.state in ("waiting", "running")]
    if not rest:
        return 0.0
    if not done or not alive:
        return None
    known = all(r.work for r in (*done, *rest))
    weights = [(r.work or 1.0) if known else 1.0 for r in done]
    pace = sum(r.seconds or 0.0 for r in done) / sum(weights)
    left = 0.0
    for r in rest:
        expected = pace * ((r.work or 1.0) if known else 1.0)
        passed = now - r.started if r.state == "running" and r.started is not None else 0.0
        left += max(0.0, expected - passed)
    return left / alive


def as_text(status: Status) -> str:
    """Return the status as text."""
    done, failed = status.count("done"), status.count("failed")
    waiting, running = status.count("waiting"), status.count("running")
    left = "unknown" if status.seconds_left is None else spoken(status.seconds_left)
    lines = [
        f"{status.folder}: {done} of {len(status.records)} done, {running} running, {waiting} waiting, "
        f"{failed} failed; {status.alive} replicas; time left: {left}"
    ]
    if status.stale:
        lines.append(f"{status.stale} of the running jobs belong to replicas that died; the next start resumes them")
    for record in status.records:
        if record.state == "running":
            lines.append(f"running  {record.name}  ({record.owner}, attempt {record.attempts})")
    for record in status.records:
        if record.state == "failed":
            lines.append(f"failed   {record.name}  ({record.place}): {record.error}")
    lines += filter(None, map(_shot_line, shots_of(status.takes)))
    return "\n".join(map(printable, lines))


def _shot_line(shot: ShotTakes) -> str:
    """Return what there is to say about a shot that has several versions, or a take that was picked or rejected."""
    decided = [f"{each.name} {each.words}" for each in shot.takes if each.words]
    if len(shot.versions) < 2 and not decided:
        return ""
    made = {version: 0 for version in shot.versions}
    for each in shot.takes:
        made[each.take.version] += each.is_made
    versions = ", ".join(f"v{version:03d} ({count} done)" for version, count in made.items())
    return f"shot     {shot.name}  {'; '.join([versions, *decided])}"


def as_json(status: Status) -> str:
    """Return the status as one JSON object."""
    takes = {each.name: each for each in status.takes}
    used = {shot.used.name for shot in shots_of(status.takes) if shot.used is not None}
    return json.dumps(
        {
            "folder": str(status.folder),
            "counts": status.counts(),
            "replicas": status.alive,
            "seconds_left": status.seconds_left,
            "jobs": [
                {
                    "name": record.name,
                    "place": record.place,
                    "state": record.state,
                    "attempts": record.attempts,
                    "replica": record.owner,
                    "seconds": record.seconds,
                    "key": record.key,
                    "error": record.error,
                    "files": status.files.get(record.name, []),
                    **_take_json(takes.get(record.name), used),
                }
                for record in status.records
            ],
        }
    )


def _take_json(take: JudgedTake | None, used: Collection[str]) -> dict[str, object]:
    if take is None:
        return {}
    facts = {"shot": take.take.shot, "version": take.take.version, "verdict": take.words or None}
    return {**facts, "is_used": take.name in used}

"""Picks and rejections of takes, kept in the run's folder, and the take of each shot that is used.

They are in `batch.picks.json`, for people and programs to read. A pick is of a video's content: if the video is made
again with other content, that is said. Knows the state of a batch, not what is done with the takes.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from ..errors import InputError
from ..system.files import write_json
from ..system.json_reader import read_json
from ..system.locks import held_lock
from ..system.terminal import printable
from .records import Record
from .run_file import RESERVED
from .store import Store, find_stores
from .takes import Take, read_take

Verdict = Literal["picked", "rejected"]
FILE = f"{RESERVED}picks.json"
MAX_NOTE = 2000  # letters
_SCHEMA = 1
_REMEDY = "restore the file, or remove it and pick again"


@dataclass(frozen=True)
class Pick:
    """A decision about a take.

    Attributes:
        content: SHA-256 over the digests of the video's files at that time.
        note: why; may be empty.
        time: ISO 8601, UTC.
    """

    verdict: Verdict
    content: str
    note: str
    time: str


@dataclass(frozen=True)
class JudgedTake:
    """A video of a batch, what it is, and what was decided about it.

    Attributes:
        pick: None: nothing was decided.
        is_stale: the video has other content than when it was decided.
    """

    record: Record
    take: Take
    pick: Pick | None = None
    is_stale: bool = False

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def is_made(self) -> bool:
        return self.record.state == "done"

    @property
    def verdict(self) -> Verdict | None:
        return None if self.pick is None else self.pick.verdict

    @property
    def title(self) -> str:
        """What it is in a few words, such as "sh010 v002, picked"."""
        return ", ".join(filter(None, [f"{self.take.shot} {self.take.label}", self.words]))

    @property
    def words(self) -> str:
        """What was decided, such as "picked"; empty: nothing."""
        if self.pick is None:
            return ""
        return self.pick.verdict + (" (made again since)" if self.is_stale else "")


@dataclass(frozen=True)
class ShotTakes:
    """A shot of a batch.

    Attributes:
        takes: all of it, by version and number.
        used: the picked one; else, of the newest version that has one, the first that is made and not rejected. None:
            there is none.
    """

    name: str
    number: int
    takes: tuple[JudgedTake, ...]
    used: JudgedTake | None

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(sorted({each.take.version for each in self.takes}))


def read_takes(folder: Path) -> list[JudgedTake]:
    """Return all videos of the batch in a folder, by shot, version and number. Raises InputError if there is none."""
    return takes_of(folder, [(store, store.records()) for store in find_stores(folder)])


def takes_of(folder: Path, stores: Sequence[tuple[Store, Sequence[Record]]]) -> list[JudgedTake]:
    """Return the same, from records that are read already."""
    picks = read_picks(folder)
    found = []
    for store, records in stores:
        digests = store.digests() if any(record.name in picks for record in records) else {}
        for position, record in enumerate(records):
            pick = picks.get(record.name)
            is_stale = pick is not None and pick.content != _content(record.name, digests.get(record.name, {}))
            found.append(JudgedTake(record, read_take(record.take, record.name, position), pick, is_stale))
    return sorted(found, key=lambda one: (one.take.shot_number, one.take.shot, one.take.version, one.take.number))


def shots_of(takes: Sequence[JudgedTake]) -> list[ShotTakes]:
    """Return the shots of a batch in the order of its run file, from `read_takes`."""
    shots: dict[str, list[JudgedTake]] = {}
    for each in takes:
        shots.setdefault(each.take.shot, []).append(each)
    return [ShotTakes(name, own[0].take.shot_number, tuple(own), _used(own)) for name, own in shots.items()]


def _used(takes: Sequence[JudgedTake]) -> JudgedTake | None:
    made = [each for each in takes if each.is_made and each.verdict != "rejected"]
    picked = [each for each in made if each.verdict == "picked"]
    newest = max((each.take.version for each in made), default=0)
    return next(iter(picked), None) or next((each for each in made if each.take.version == newest), None)


def decide(folder: Path, names: Sequence[str], verdict: Verdict | None, *, note: str = "") -> list[JudgedTake]:
    """Record a decision about takes, and return them all.

    A shot has at most one picked take: picking another one takes the place of the first.

    Args:
        names: of videos of the batch, with or without suffix, or the beginning of only one name, such as shot010_v002.
        verdict: None forgets what was decided.

    Raises:
        InputError: no batch, a name that is unknown or of several videos, or a video that is not made.
    """
    if len(note) > MAX_NOTE:
        raise InputError(f"--note: expected at most {MAX_NOTE} letters, got {len(note)}; shorten it")
    with held_lock(folder / f"{RESERVED}picks.lock", patience=10) as is_ours:
        if not is_ours:
            raise InputError(f"{folder}: another process has been picking here for over 10 s; stop it")
        takes = read_takes(folder)
        chosen = [_find(name, takes) for name in names]
        shots = [each.take.shot for each in chosen]
        if verdict == "picked" and len(set(shots)) < len(set(each.name for each in chosen)):
            twice = next(shot for shot in shots if shots.count(shot) > 1)
            raise InputError(printable(f"pick: expected one take of each shot, got several of {twice}; keep one"))
        if verdict is not None and (open_ := [each.name for each in chosen if not each.is_made]):
            raise InputError(printable(f"pick: expected videos that are made, but {open_[0]} is not; make it first"))
        picks = dict(read_picks(folder))
        digests = {name: own for store in find_stores(folder) for name, own in store.digests().items()}
        for each in chosen:
            if verdict == "picked":
                rivals = [o.name for o in takes if o.take.shot == each.take.shot and o.verdict == "picked"]
                for rival in rivals:
                    picks.pop(rival, None)
            picks.pop(each.name, None)
            if verdict is not None:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                picks[each.name] = Pick(verdict, _content(each.name, digests.get(each.name, {})), note, now)
        write_json(folder / FILE, {"schema": _SCHEMA, "picks": {name: asdict(pick) for name, pick in picks.items()}})
    return read_takes(folder)


def read_picks(folder: Path) -> Mapping[str, Pick]:
    """Return what was decided, by names of videos; empty if nothing was. Raises InputError for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return {}
    values = read_json(path, remedy=_REMEDY)
    if not isinstance(values, dict) or values.get("schema") != _SCHEMA or not isinstance(values.get("picks"), dict):
        raise InputError(f"{path}: expected picks of schema {_SCHEMA}, got something else; {_REMEDY}")
    return {name: _read_pick(path, name, value) for name, value in values["picks"].items()}


def _read_pick(path: Path, name: str, value: Any) -> Pick:
    fields = tuple(Pick.__dataclass_fields__)
    is_pick = (
        isinstance(value, dict) and value.keys() == set(fields) and all(isinstance(v, str) for v in value.values())
    )
    if not is_pick or value["verdict"] not in get_args(Verdict):
        raise InputError(
            printable(f"{path}: {name}: expected {', '.join(fields)} as text, got another value; {_REMEDY}")
        )
    return Pick(**value)


def _find(name: str, takes: Sequence[JudgedTake]) -> JudgedTake:
    exact = [each for each in takes if name in (each.name, str(PurePath(each.name).with_suffix("")))]
    found = exact or [each for each in takes if each.name.startswith(f"{name}_")]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(each.name for each in found[:6])
        raise InputError(printable(f"pick: expected one video, but {name[:100]!r} begins the names of {names}"))
    near = difflib.get_close_matches(name, _names(takes), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "s2video pick RUN prints all names"
    raise InputError(printable(f"pick: no video of this batch is called {name[:100]!r}; {hint}"))


def _names(takes: Sequence[JudgedTake]) -> Iterator[str]:
    yield from (str(PurePath(each.name).with_suffix("")) for each in takes)


def _content(name: str, digests: Mapping[str, str]) -> str:
    """Return a digest of a video's files, without its sidecar, which differs from run to run."""
    sidecar = PurePath(name).with_suffix(".json").as_posix()
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()) if path != sidecar)
    return hashlib.sha256(lines.encode()).hexdigest()


def as_text(takes: Sequence[JudgedTake]) -> str:
    """Return a line for each take, with a ">" at those that are used."""
    used = {shot.used.name for shot in shots_of(takes) if shot.used is not None}
    lines = []
    for each in takes:
        note = f": {each.pick.note}" if each.pick is not None and each.pick.note else ""
        said = each.words or ("" if each.is_made else each.record.state)
        mark = ">" if each.name in used else " "
        lines.append(f"{mark} {each.take.shot}  {each.take.label}  {each.name}  {said}{note}".rstrip())
    return "\n".join(map(printable, lines))

"""Shots, versions and takes: what of a run file each video of a batch is.

A take is one video of a shot in one version. A batch that is started with another version keeps the videos of the
others, with their state and their checksums.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath

from ..errors import InputError
from ..system.json_reader import parse_json
from ..system.terminal import printable

MAX_VERSION = 9999


@dataclass(frozen=True)
class Take:
    """What a video is.

    Attributes:
        shot: name of its shot.
        shot_number: place of the shot in the run file, from 1.
        version: of the shot, from 1.
        number: place of the video among all of the run file, from 0.
    """

    shot: str
    shot_number: int = 1
    version: int = 1
    number: int = 0

    @property
    def label(self) -> str:
        """The version as names write it, such as v002."""
        return f"v{self.version:03d}"

    def as_text(self) -> str:
        """Return the text that the state holds."""
        return json.dumps(asdict(self))


def read_take(text: str | None, name: str, position: int) -> Take:
    """Return the take of a job in the state, by what it says; a state of an older version says nothing.

    Args:
        name: of the job.
        position: of the job in the batch, from 0.

    Raises:
        InputError: not the text of a take.
    """
    if not text:
        return Take(PurePath(name).stem, position + 1, 1, position)
    values = parse_json(text, f"the take of {name}", remedy="restore the state, or choose another folder")
    kinds = {"shot": str, "shot_number": int, "version": int, "number": int}
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise InputError(
            f"the take of {name}: expected {', '.join(kinds)}, got {str(values)[:60]!r}; restore the state"
        )
    for key, kind in kinds.items():
        if not isinstance(values[key], kind):
            raise InputError(f"the take of {name}: {key}: expected {kind.__name__}, got {str(values[key])[:60]!r}")
    return Take(**values)


def version_of(value: object) -> int | None:
    """Return the version that `fields.version` names, as 2, "2" or "v002"; None if it names none."""
    match = re.fullmatch(r"v?(\d{1,4})", str(value), re.ASCII | re.IGNORECASE)
    return int(match[1]) if match is not None and int(match[1]) else None


def chosen_shots(patterns: Sequence[str], shots: Sequence[str]) -> frozenset[str]:
    """Return the names of shots that patterns such as "shot010" or "sh01*" match.

    Raises:
        InputError: a pattern that matches none; the error suggests the nearest name.
    """
    found: set[str] = set()
    for pattern in patterns:
        matching = [shot for shot in shots if shot == pattern] or fnmatch.filter(shots, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, shots, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(shots[:20])}"
            raise InputError(printable(f"--only: no shot is called {pattern[:60]!r}; {hint}"))
        found.update(matching)
    return frozenset(found)


def staying(
    known: Iterable[tuple[str, str]], made: Collection[Take], shots: Collection[str], *, partial: bool
) -> set[str]:
    """Return the jobs of a state that stay in it, although they are not in the list of this start.

    Those of other versions stay. Those of this version leave it: their sweep or their seeds have changed. So do those
    of shots that are no longer in the run file, unless only a part of the run file is made.

    Args:
        known: name and text of the take of each job that is not in the list.
        made: takes in the list.
        shots: names of all shots in the run file.
        partial: only some shots, or another version, are made.
    """
    replaced = {(take.shot, take.version) for take in made}
    stay = set()
    for name, text in known:
        if not text:  # an older version of s2video wrote it
            if partial:
                stay.add(name)
            continue
        take = read_take(text, name, 0)
        if (take.shot, take.version) not in replaced and (partial or take.shot in shots):
            stay.add(name)
    return stay

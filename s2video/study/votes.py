"""Blinded votes: the pairs that are shown, which side each setting is on, and the files that the page saves.

A pair is named by its clip and the digests of its two files. So votes stay valid when a study grows, and are not
counted for videos that were made again in another way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..config.text import show
from ..errors import InputError
from ..system.file_digests import file_digest
from ..system.json_reader import read_json
from .clips import Clip, Study

Choice = Literal["left", "same", "right"]


@dataclass(frozen=True)
class Pair:
    """Two videos of a clip, the base and another setting, on the sides that a hash of both decides."""

    key: str
    clip: Clip
    left: str
    right: str

    def other(self, base: str) -> str:
        """Return the setting that is not the base."""
        return self.right if self.left == base else self.left


@dataclass(frozen=True)
class Vote:
    """A choice: +1 for the other setting, −1 for the base, 0 if neither is better."""

    clip: Clip
    other: str
    value: int
    voter: str


@dataclass(frozen=True)
class Votes:
    """What several voters chose.

    Attributes:
        seen: number of votes that were given after the names were shown, which do not count.
        unknown: number of votes for pairs that the study does not have.
    """

    counted: tuple[Vote, ...]
    num_voters: int
    seen: int
    unknown: int


def pairs_of(study: Study) -> Iterator[Pair]:
    """Yield each clip's base with each other setting, where both videos are there."""
    for clip in study.clips:
        for other in study.others:
            if {study.base, other} <= clip.videos.keys():
                digests = [file_digest(clip.videos[name].path) for name in (study.base, other)]
                key = hashlib.sha256(os.fsencode("/".join([clip.name, *digests]))).hexdigest()[:16]
                is_swapped = int(hashlib.sha256(f"side of {key}".encode()).hexdigest(), 16) % 2
                left, right = (other, study.base) if is_swapped else (study.base, other)
                yield Pair(key, clip, left, right)


def read_votes(paths: Sequence[Path], study: Study) -> Votes:
    """Return the votes of one or more files that the page of this study has saved.

    Raises:
        InputError: a file that cannot be read, holds nothing for this study, or is given twice.
    """
    pairs = {pair.key: pair for pair in pairs_of(study)}
    counted: list[Vote] = []
    seen = unknown = 0
    contents: dict[str, Path] = {}
    for number, path in enumerate(paths, 1):
        content = _read(path)
        voter = str(content.get("voter") or "").strip()
        identity = f"voter {voter}" if voter else str(content["votes"])
        if identity in contents:
            raise InputError(
                f"--votes {path}: expected another voter than in {contents[identity]}, got the same; keep one"
            )
        contents[identity] = path
        found = 0
        for vote in content["votes"]:
            pair = pairs.get(vote["pair"])
            if pair is None:
                unknown += 1
                continue
            found += 1
            if vote.get("blind") is not True:
                seen += 1
                continue
            chosen = {"left": pair.left, "right": pair.right}.get(vote["choice"])
            other = pair.other(study.base)
            value = 0 if chosen is None else 1 if chosen == other else -1
            counted.append(Vote(pair.clip, other, value, voter or f"voter {number}"))
        if content["votes"] and not found:
            raise InputError(f"--votes {path}: expected votes on videos of this study, got none; were they made again?")
    return Votes(tuple(counted), len(paths), seen, unknown)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, remedy="pass a file that the study's page has saved")
    votes = content.get("votes") if isinstance(content, dict) else None
    if not isinstance(votes, list):
        raise InputError(f"--votes {path}: expected a file that the study's page has saved, got {show(content)}")
    for vote in votes:
        if not (
            isinstance(vote, dict) and isinstance(vote.get("pair"), str) and vote.get("choice") in get_args(Choice)
        ):
            raise InputError(f"--votes {path}: expected a pair and a choice of left, same or right, got {show(vote)}")
    if len({vote["pair"] for vote in votes}) < len(votes):
        raise InputError(f"--votes {path}: expected one vote for each pair, got two; save it again")
    assert isinstance(content, dict)
    return content

"""The results of a study: what each setting costs, and how it differs from the base in every measure.

Differences are paired by clip, and their intervals are of prompts: all clips of a prompt are drawn together. Knows
numbers, neither models nor pages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from .bootstrap import MIN_PROMPTS, Bootstrap, Estimate, Sample, is_decided, prompts_needed
from .clips import Study
from .costs import passes_of, seconds_of
from .scores import Scores
from .votes import Votes

TOO_FEW = "not enough clips to tell"
SAME = "the same in all clips"


@dataclass(frozen=True)
class Cost:
    """What a setting costs; None if no sidecar has it.

    Attributes:
        passes: mean of a clip, in passes through the whole network.
        seconds: median of a clip's denoising.
        share: `passes` over those of the base.
    """

    setting: str
    videos: int
    passes: float | None
    seconds: float | None
    share: float | None = None


@dataclass(frozen=True)
class Difference:
    """A setting less the base, of clips that both have.

    Attributes:
        verdict: higher, lower, `TOO_FEW` or `SAME`.
        needed: about how many prompts would decide, for a verdict of `TOO_FEW`; None if no number can be given.
    """

    setting: str
    estimate: Estimate
    num_clips: int
    num_prompts: int
    verdict: str
    needed: int | None = None

    @property
    def is_decided(self) -> bool:
        """Whether it is higher or lower."""
        return self.verdict in ("higher", "lower")


@dataclass(frozen=True)
class Row:
    """One measure: its means by setting, and the difference of each other setting."""

    measure: str
    meaning: str
    means: Mapping[str, float]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Preference:
    """How often voters preferred a setting to the base.

    Attributes:
        difference: mean of +1 (this setting), 0 (the same) and −1 (the base).
    """

    setting: str
    wins: int
    same: int
    losses: int
    difference: Difference


@dataclass(frozen=True)
class Results:
    """Everything that tables show. `notes` are sentences."""

    base: str
    num_prompts: int
    num_clips: int
    costs: tuple[Cost, ...]
    rows: tuple[Row, ...]
    preferences: tuple[Preference, ...] = ()
    num_voters: int = 0
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values; null for what does not exist."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def compare(study: Study, scores: Scores, meanings: Mapping[str, str], votes: Votes | None = None) -> Results:
    """Return the results of a study.

    Args:
        scores: of every measure, by clip and setting; NaN where a clip has none.
        meanings: what a measure is; those of others are unknown.
        votes: None if there are none.
    """
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(clip.prompt for clip in study.clips))}
    judge = _Judge(study, {clip.name: numbers[clip.prompt] for clip in study.clips})
    rows = tuple(judge.row(measure, meanings.get(measure, ""), values) for measure, values in scores.items())
    notes = list(study.notes)
    for setting in study.settings:
        if count := study.missing(setting):
            notes.append(
                f"{count} of {len(study.clips)} videos of {setting} are missing; pairs that are not whole are left out"
            )
    preferences: tuple[Preference, ...] = ()
    if votes is not None:
        preferences = tuple(judge.preference(setting, votes) for setting in study.others)
        notes += _notes_on(votes)
    return Results(
        study.base,
        study.num_prompts,
        len(study.clips),
        _costs(study),
        rows,
        preferences,
        0 if votes is None else votes.num_voters,
        tuple(notes),
    )


class _Judge:
    """Compares settings with the base.

    Args:
        prompts: the number of each clip's prompt.
    """

    def __init__(self, study: Study, prompts: Mapping[str, int]) -> None:
        self._study = study
        self._prompts = prompts
        self._bootstrap = Bootstrap(max(1, len(set(prompts.values()))))

    def row(self, measure: str, meaning: str, values: Mapping[tuple[str, str], float]) -> Row:
        means = {
            setting: _mean([value for (_, name), value in values.items() if name == setting])
            for setting in self._study.settings
        }
        differences = []
        for setting in self._study.others:
            pairs = {
                clip.name: values[clip.name, setting] - values[clip.name, self._study.base]
                for clip in self._study.clips
                if {(clip.name, setting), (clip.name, self._study.base)} <= values.keys()
            }
            differences.append(self._difference(setting, list(pairs), list(pairs.values())))
        return Row(measure, meaning, means, tuple(differences))

    def preference(self, setting: str, votes: Votes) -> Preference:
        own = [vote for vote in votes.counted if vote.other == setting]
        counts = Counter(vote.value for vote in own)
        difference = self._difference(setting, [vote.clip.name for vote in own], [float(vote.value) for vote in own])
        return Preference(setting, counts[1], counts[0], counts[-1], difference)

    def _difference(self, setting: str, clips: Sequence[str], values: Sequence[float]) -> Difference:
        there = [(clip, value) for clip, value in zip(clips, values, strict=True) if math.isfinite(value)]
        prompts = np.array([self._prompts[clip] for clip, _ in there], int)
        num_prompts = len(set(prompts.tolist()))
        found = self._bootstrap.mean(Sample(np.array([value for _, value in there], float), prompts))
        judged = Difference(setting, found, len({clip for clip, _ in there}), num_prompts, TOO_FEW)
        if not there:
            return judged
        if is_decided(found, num_prompts):
            return replace(judged, verdict="higher" if found.value > 0 else "lower")
        if all(value == 0 for _, value in there):
            return replace(judged, verdict=SAME)
        needed = prompts_needed(found, num_prompts) if num_prompts >= MIN_PROMPTS else MIN_PROMPTS
        return replace(judged, needed=needed)


def _costs(study: Study) -> tuple[Cost, ...]:
    costs = []
    for setting in study.settings:
        videos = [video for _, name, video in study.videos() if name == setting]
        sidecars = [video.sidecar for video in videos if video.sidecar is not None]
        passes = [found for sidecar in sidecars if (found := passes_of(sidecar)) is not None]
        seconds = [found for sidecar in sidecars if (found := seconds_of(sidecar)) is not None]
        costs.append(
            Cost(setting, len(videos), _mean(passes) if passes else None, median(seconds) if seconds else None)
        )
    base = costs[0].passes
    return tuple(replace(c, share=c.passes / base if c.passes is not None and base else None) for c in costs)


def _notes_on(votes: Votes) -> Iterable[str]:
    if votes.seen:
        yield f"{votes.seen} votes do not count, because the names were shown before"
    if votes.unknown:
        yield f"{votes.unknown} votes do not count, because they are on videos that are not in this study now"


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

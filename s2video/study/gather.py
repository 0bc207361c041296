"""The measures and scores of a study's videos, gathered from all their sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from .clips import Study
from .measures import MEASURES, Measured, unplayable_because
from .scores import Scores


def measured_study(study: Study, cache_path: Path) -> tuple[Study, Scores]:
    """Return the study without videos that cannot be read, which become notes, and the measures of the others.

    Args:
        cache_path: JSON file that keeps measures from one call to the next.

    Raises:
        InputError: no video can be read.
    """
    measured = Measured(cache_path)
    unplayable: list[str] = []
    scores: Scores = {measure: {} for measure in MEASURES}
    notes, lost = list(study.notes), set()
    for clip, setting, video in study.videos():
        try:
            found = measured.of(video.path)
        except InputError as error:
            notes.append(f"{error}; left out")
            lost.add((clip.name, setting))
            continue
        if (problem := unplayable_because(video.path)) is not None:
            unplayable.append(f"{clip.name} of {setting} ({problem})")
        for measure, value in found.items():
            scores[measure][clip.name, setting] = value
    measured.save()
    if unplayable:
        more = f" and {len(unplayable) - 1} more" if len(unplayable) > 1 else ""
        notes.append(f"browsers do not play {unplayable[0]}{more}: convert to H.264 in .mp4 before you vote")
    clips = tuple(
        replace(clip, videos={name: video for name, video in clip.videos.items() if (clip.name, name) not in lost})
        for clip in study.clips
    )
    if not any(clip.videos for clip in clips):
        raise InputError(f"{study.title}: expected videos that can be read, got none; {notes[-1]}")
    return replace(study, clips=clips, notes=tuple(notes)), scores


def merge(scores: Scores, more: Scores, source: str) -> None:
    """Add scores to those that are known. Raises InputError, which names `source`, if a value is known already."""
    for measure, values in more.items():
        known = scores.setdefault(measure, {})
        if twice := known.keys() & values.keys():
            raise InputError(f"{source}: {measure} of {min(twice)[0]} is known already; rename the measure")
        known |= values

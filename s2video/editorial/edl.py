"""Timelines as CMX 3600 edit decision lists.

OpenTimelineIO's own writer loses the start timecode of the record, drop-frame, names of over eight letters and all
metadata, so that only its reader is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from ..errors import InputError
from .otio import frames_of, label, library, metadata_of, url_of

_REEL = 8  # letters
_MAX_EVENTS = 9999
_FACTS = ("take", "seed", "s2_scale", "cfg_scale", "model")


def write_edl(timeline: Any, fps: Fraction, *, drop: bool) -> str:
    """Return the events of the only video track, with record timecodes from the timeline's start.

    Names, files, prompts and facts are comments, which other programs keep or ignore.

    Raises:
        InputError: no video track or several, a dissolve, a nested sequence, or too many events.
    """
    otio = library()
    tracks = [track for track in timeline.video_tracks() if track.enabled]
    if len(tracks) != 1:
        raise InputError(f"EDL: expected one video track, got {len(tracks)}; write .otio or .xml")
    if any(isinstance(child, otio.schema.Transition) for child in tracks[0]):
        raise InputError("EDL: expected cuts only, got a transition; write .otio or .xml")
    if any(isinstance(child, otio.core.Composition) for child in tracks[0]):
        raise InputError("EDL: expected clips only, got a nested sequence; write .otio or .xml")
    start = 0 if timeline.global_start_time is None else frames_of(timeline.global_start_time, fps)
    lines = [f"TITLE: {_line(timeline.name or 'cut')[:70]}", f"FCM: {'' if drop else 'NON-'}DROP FRAME", ""]
    reels: dict[str, str] = {}
    number, at = 0, start
    for child in tracks[0]:
        length = frames_of(child.duration(), fps)
        if isinstance(child, otio.schema.Clip) and child.enabled:
            number += 1
            source = child.trimmed_range()
            times = [frames_of(source.start_time, fps), frames_of(source.start_time, fps) + length, at, at + length]
            labels = " ".join(label(time, fps, drop=drop) for time in times)
            lines += [f"{number:03d}  {_reel(child, reels):8} V     C        {labels}", *_comments(child), ""]
        at += length
    if number > _MAX_EVENTS:
        raise InputError(f"EDL: expected at most {_MAX_EVENTS} events, got {number}; write .otio or .xml")
    return "\n".join(lines)


def _comments(clip: Any) -> Iterator[str]:
    yield f"* FROM CLIP NAME: {_line(clip.name)}"
    if url := url_of(clip):
        yield f"* SOURCE FILE: {_line(unquote(url).rstrip('/').rpartition('/')[2])}"
    facts = metadata_of(clip)
    if prompt := facts.get("prompt"):
        yield f"* PROMPT: {_line(prompt)}"
    if said := [f"{key}={_line(facts[key])}" for key in _FACTS if facts.get(key) is not None]:
        yield f"* S2VIDEO: {' '.join(said)}"


def _reel(clip: Any, reels: dict[str, str]) -> str:
    """Return up to eight letters that no other medium of the list has.

    Args:
        reels: reel -> medium, of those before; the new one is added.
    """
    medium = url_of(clip) or clip.name
    own = metadata_of(clip, "cmx_3600").get("reel") or clip.name
    base = re.sub(r"[^A-Z0-9_]+", "", str(own).upper()) or "AX"
    reel, number = base[:_REEL], 1
    while reels.get(reel, medium) != medium:
        number += 1
        reel = base[: _REEL - len(str(number))] + str(number)
    reels[reel] = medium
    return reel


def _line(text: object) -> str:
    return " ".join(str(text).split())

"""The timeline of a batch, written by the suffix of its path."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..media.signature import sign
from ..media.timecode import Timecode
from ..system.files import atomic_path
from ..system.terminal import printable
from .build import conformed, new_timeline
from .cut import CutShot, common_rate, read_cut
from .edl import write_edl
from .fcp_xml import write_xml
from .otio import NAMESPACE, is_drop, library, metadata_of
from .read import check_suffix
from .shots import kept_timeline

START = "01:00:00:00"


def write_timeline(
    folder: Path, path: Path, *, title: str, start: str | None = None, handles: int | None = None
) -> list[str]:
    """Write the cut of a batch as .otio, .edl or .xml, and return sentences for the user.

    Args:
        folder: of the batch.
        start: timecode of the first frame; None: that of the batch's own timeline, or 01:00:00:00.
        handles: frames at both ends of each video that the cut does not use; None: those of the batch's own timeline,
            or none.

    Raises:
        InputError: no batch, no video, or videos that make no timeline.
    """
    suffix, shots = check_suffix(path), read_cut(folder)
    title = printable(title)  # a name of a folder can have bytes that are no text
    own, placed = kept_timeline(folder), {shot.name for shot in shots}
    if own is not None:
        if start is not None or handles is not None:
            raise InputError(
                f"{folder}: was made from a timeline, which has a start and handles of its own; leave out --start and "
                "--handles"
            )
        timeline = conformed(own.otio, {shot.name: shot for shot in shots})
        timeline.name = timeline.name or title
        placed = {str(metadata_of(clip).get("shot")) for clip in timeline.find_clips()}
        fps, drop = own.fps, own.drop
    else:
        fps = common_rate(shots)
        drop = _drop(start, shots, fps)
        first = Timecode.parse(_with_drop(start or START, drop=drop), fps).count
        timeline = new_timeline(shots, title=title, start=first, handles=handles or 0)
    timeline.metadata[NAMESPACE] = {"fps": str(fps), "drop": drop, "source": printable(folder.resolve().name)}
    text = _text(timeline, suffix, fps, shots, drop=drop)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sign(temporary)
    missing = [f"{shot.name}: {shot.why}; the timeline has a gap there" for shot in shots if shot.media is None]
    missing += [
        f"{shot.name}: not in the batch's timeline, so it is left out" for shot in shots if shot.name not in placed
    ]
    return [*map(printable, missing), *(note for shot in shots for note in shot.notes)]


def _text(timeline: Any, suffix: str, fps: Fraction, shots: Sequence[CutShot], *, drop: bool) -> str:
    if suffix == ".otio":
        return str(timeline.to_json_string()) + "\n"
    if not library().opentime.RationalTime.is_smpte_timecode_rate(float(fps)):
        raise InputError(
            f"timeline: expected a frame rate with SMPTE timecode, such as 24000/1001, 24 or 25, got {fps}; "
            "make the videos with such an output.fps, or write .otio"
        )
    if suffix == ".edl":
        return write_edl(timeline, fps, drop=drop)
    media = [shot.media for shot in shots if shot.media is not None]
    size = (media[0].width, media[0].height) if media else None
    return write_xml(timeline, fps, drop=drop, size=size, sound=any(each.has_sound for each in media))


def _drop(start: str | None, shots: Sequence[CutShot], fps: Fraction) -> bool:
    timecodes = [shot.media.timecode for shot in shots if shot.media is not None and shot.media.timecode]
    return is_drop(start or next(iter(timecodes), None), fps)


def _with_drop(start: str, *, drop: bool) -> str:
    """Return a start as drop-frame if the labels are."""
    return ";".join(start.rsplit(":", 1)) if drop and ";" not in start else start

"""A cut as a timeline of OpenTimelineIO: a new one, or the one that the batch was made for, with its clips filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from ..config.text import show
from ..errors import InputError
from .cut import CutShot, Media, common_rate
from .otio import NAMESPACE, exact_rate, frames_of, library, metadata_of, plain


def new_timeline(shots: Sequence[CutShot], *, title: str, start: int, handles: int) -> Any:
    """Return a timeline with one video track: the shots one after the other, a gap where one has no video.

    Args:
        start: frame of the first one, since 00:00:00:00.
        handles: frames at the beginning and the end of each video that the cut does not use.

    Raises:
        InputError: shots of different rates, or too short for the handles.
    """
    otio, fps = library(), common_rate(shots)
    for shot in shots:
        if shot.frames <= 2 * handles:
            raise InputError(
                f"--handles: expected less than half of each shot, got {handles}, and {shot.name} has {shot.frames} "
                "frames; choose fewer"
            )
    timeline = otio.schema.Timeline(title, global_start_time=otio.opentime.RationalTime(start, float(fps)))
    track = otio.schema.Track("V1", kind=otio.schema.TrackKind.Video)
    timeline.tracks.append(track)
    for shot in shots:
        length = shot.frames - 2 * handles
        if shot.media is None:
            track.append(_gap(shot, length, fps))
        else:
            clip = otio.schema.Clip(shot.name)
            _fill(clip, shot.media, length, handles)
            track.append(clip)
    return timeline


def conformed(timeline: Any, shots: Mapping[str, CutShot]) -> Any:
    """Return a copy of the timeline of a batch (`shots_in`), in which each clip that is a shot shows its video.

    Cuts, durations, other clips, transitions and tracks stay as they are.

    Raises:
        InputError: a video whose rate is not that of its clip, or that is shorter.
    """
    otio, result = library(), timeline.deepcopy()
    for clip in result.find_clips():
        shot = shots.get(str(metadata_of(clip).get("shot")))
        if shot is None or shot.media is None:
            if shot is not None:
                clip.media_reference = otio.schema.MissingReference(shot.why)
            continue
        fps = exact_rate(clip.duration().rate)
        length, head = frames_of(clip.duration(), fps), _head(clip)
        if shot.media.fps != fps or shot.media.frames < head + length:
            raise InputError(
                f"{shot.name}: expected {head + length} frames or more at {fps} frames per second, as in the "
                f"batch's timeline, got {shot.media.frames} at {shot.media.fps}; make it again from the timeline"
            )
        _fill(clip, shot.media, length, head)
    return result


def _fill(clip: Any, media: Media, length: int, head: int) -> None:
    """Give a clip its video, of which it shows `length` frames after the first `head`."""
    otio, rate = library(), float(media.fps)
    range_of = otio.opentime.TimeRange
    time = otio.opentime.RationalTime
    available = range_of(time(media.start, rate), time(media.frames, rate))
    metadata = {NAMESPACE: media.facts}
    if media.first_number is None:
        reference = otio.schema.ExternalReference(media.path.as_uri(), available, metadata)
        reference.name = media.path.name
    else:
        suffix = _suffix(media)
        reference = otio.schema.ImageSequenceReference(
            f"{media.path.as_uri()}/", f"{media.path.name}.", suffix, media.first_number, 1, rate, 4
        )
        reference.available_range = available
        reference.name = media.path.name
        reference.metadata.update(metadata)
    clip.media_reference = reference
    clip.source_range = range_of(time(media.start + head, rate), time(length, rate))
    settings = plain(metadata_of(clip).get("settings"))
    clip.metadata[NAMESPACE] = {**media.facts, "head": head} | ({"settings": settings} if settings else {})


def _head(clip: Any) -> int:
    """Return the frames of a clip's video before its own, as `shots_in` has noted them."""
    head = metadata_of(clip).get("head", 0)
    if not isinstance(head, int) or head < 0:
        raise InputError(f"the batch's timeline: {clip.name}: head: expected frames, got {show(head)}; restore it")
    return head


def _suffix(media: Media) -> str:
    """Return the suffix of a sequence's files, such as .exr, by its first one."""
    assert media.first_number is not None
    number = f"{media.first_number:04d}"
    names = (path.name for path in media.path.glob(f"*.{number}.*"))
    first = min(names, default=f"{media.path.name}.{number}.png")
    return "." + first.rpartition(".")[2]


def _gap(shot: CutShot, length: int, fps: Fraction) -> Any:
    otio, rate = library(), float(fps)
    zero, duration = otio.opentime.RationalTime(0, rate), otio.opentime.RationalTime(length, rate)
    gap = otio.schema.Gap(shot.name, source_range=otio.opentime.TimeRange(zero, duration))
    marker = otio.schema.Marker(shot.name, otio.opentime.TimeRange(zero, otio.opentime.RationalTime(1, rate)), "RED")
    marker.comment = shot.why
    gap.markers.append(marker)
    gap.metadata[NAMESPACE] = {"shot": shot.name, "missing": shot.why}
    return gap

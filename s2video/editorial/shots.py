"""The shots that a timeline asks for: names, lengths that the model can make, handles, timecodes, prompts.

A clip with a prompt is a shot. Other clips are left as they are. The timeline is kept in the batch's folder, where
`s2video timeline` fills its clips with the videos, so that the cut stays what it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..batch.run_file import RESERVED, base_settings
from ..config.marks import settings_that_name
from ..config.run import RunConfig
from ..config.text import show
from ..errors import InputError
from ..media.formats import FORMATS, holds_timecode
from ..models.checkpoint import OpenModel
from ..models.family import CheckpointInfo
from ..system.files import atomic_path
from ..system.terminal import printable
from .otio import NAMESPACE, exact_rate, frames_of, label, library, metadata_of, plain
from .read import Timeline, read_timeline

KEPT = f"{RESERVED}timeline.otio"
MAX_HANDLES = 1000
_VIDEO = re.compile(r"\.(mov|mp4|mxf|mkv|avi|m4v|webm|exr|png|dpx|tiff?|jpe?g)$", re.IGNORECASE)
_OF_THE_CLIP = ("shot", "prompt", "sampling.num_frames", "output.fps")
_PROMPT = re.compile(r"^(?:comment:\s*)?prompt:\s*(.+)$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class TimelineShots:
    """What a timeline asks for.

    Attributes:
        shots: as items of a run file's `shots`.
        timeline: the timeline, in which each clip that is a shot names it.
        notes: sentences for the user.
    """

    shots: list[dict[str, Any]]
    timeline: Timeline
    notes: tuple[str, ...]


def shots_in(
    path: Path, run_file: Path, overrides: tuple[str, ...], *, handles: int, open_model: OpenModel
) -> TimelineShots:
    """Read a timeline, and return its shots.

    Args:
        run_file: the settings of all shots; may be `path`, and then they are the defaults.
        handles: frames before and after each clip's own.

    Raises:
        InputError: not a timeline, none with a prompt, or settings that contradict it.
    """
    if not 0 <= handles <= MAX_HANDLES:
        raise InputError(f"--handles: expected frames from 0 to {MAX_HANDLES}, got {handles}")
    values, config = base_settings(run_file, overrides)
    own_output = values.get("output") or {}
    own_fps = config.output.fps if "fps" in own_output else None
    timeline = read_timeline(path, own_fps)
    if own_fps is not None and own_fps != timeline.fps:
        raise InputError(
            f"output.fps: expected {timeline.fps}, the rate of {path}, got {own_fps}; leave it out, or change it"
        )
    info = open_model(*config.model.source).info
    return _shots(path, timeline, config, info, handles, sets_timecode=own_output.get("timecode") is None)


def _shots(
    path: Path, timeline: Timeline, config: RunConfig, info: CheckpointInfo, handles: int, *, sets_timecode: bool
) -> TimelineShots:
    otio, fps = library(), timeline.fps
    copy = Timeline(timeline.otio.deepcopy(), fps, timeline.drop)
    found: list[dict[str, Any]] = []
    left, nested, names = [], [], Counter[str]()
    for track in copy.otio.video_tracks():
        for index, clip in enumerate(track):
            if isinstance(clip, otio.core.Composition):
                nested.append(clip.name or "one without a name")
            if not isinstance(clip, otio.schema.Clip) or not clip.enabled:
                continue
            own = metadata_of(clip)
            prompt = prompt_of(clip) or config.prompt
            if prompt is None:
                left.append(clip.name or "a clip without a name")
                continue
            if exact_rate(clip.duration().rate) != fps:
                raise InputError(
                    f"timeline {path}: {clip.name}: expected {fps} frames per second, got {clip.duration().rate:g}; "
                    "export it at one rate"
                )
            head, tail = (max(handles, more) for more in _overlaps(track, index, fps, otio))
            shot = _settings(path, clip.name, own)
            begin = frames_of(clip.trimmed_range().start_time, fps) - head
            if sets_timecode and begin >= 0 and _takes_timecode(shot, config, fps):
                shot["output.timecode"] = label(begin, fps, drop=timeline.drop)
            shot["shot"] = _unique(_name(own, clip, len(found) + 1), names)
            shot["prompt"] = prompt
            shot["sampling.num_frames"] = possible_frames(head + frames_of(clip.duration(), fps) + tail, info)
            shot["output.fps"] = str(fps)
            found.append(shot)
            clip.metadata[NAMESPACE] = {**_kept(own), "shot": shot["shot"], "head": head}
    if not found:
        raise InputError(
            f"timeline {path}: expected a clip with a prompt, got none; write it into the clip's metadata as "
            f"{NAMESPACE}.prompt, into a marker as 'prompt: ...', or set prompt for all of them"
        )
    copy.otio.metadata[NAMESPACE] = {"fps": str(fps), "drop": timeline.drop, "source": printable(path.name)}
    unread = {"without a prompt": left, "as nested sequences, whose clips are not read": nested}
    notes = (
        f"left as they are, {what}: {', '.join(clips[:5])}{', ...' if len(clips) > 5 else ''}"
        for what, clips in unread.items()
        if clips
    )
    return TimelineShots(found, copy, tuple(map(printable, notes)))


def prompt_of(clip: Any) -> str | None:
    """Return the prompt in a clip's metadata, comments or markers; None if there is none."""
    return next((text for text in map(_clean, _prompts(clip)) if text), None)


def _prompts(clip: Any) -> Iterator[Any]:
    yield metadata_of(clip).get("prompt")
    yield clip.metadata.get("prompt")
    comments = plain(metadata_of(clip, "cmx_3600").get("comments"))
    for comment in comments if isinstance(comments, list) else ():
        if (match := _PROMPT.match(str(comment).strip())) is not None:
            yield match[1]
    for marker in clip.markers:
        comment = metadata_of(marker, "fcp_xml").get("comment")
        for text in (marker.name, marker.comment, comment):
            if (match := _PROMPT.match(str(text or "").strip())) is not None:
                yield match[1]
        if str(marker.name).strip().casefold() == "prompt":
            yield marker.comment or comment


def _clean(text: Any) -> str:
    return " ".join(text.split()) if isinstance(text, str) else ""


def possible_frames(frames: int, info: CheckpointInfo) -> int:
    """Return the smallest number of frames, at least `frames`, that the model can make (see `models.limits`)."""
    return info.frames.at_least(frames)


def _overlaps(track: Any, index: int, fps: Fraction, otio: Any) -> tuple[int, int]:
    """Return the frames before and after a clip's own that transitions next to it show."""
    before = track[index - 1] if index > 0 else None
    after = track[index + 1] if index + 1 < len(track) else None
    is_transition = otio.schema.Transition
    return (
        frames_of(before.in_offset, fps) if isinstance(before, is_transition) else 0,
        frames_of(after.out_offset, fps) if isinstance(after, is_transition) else 0,
    )


def _name(own: Mapping[str, Any], clip: Any, number: int) -> str:
    return str(own.get("shot") or "") or _VIDEO.sub("", clip.name).strip() or f"shot{number:03d}0"


def _unique(name: str, names: Counter[str]) -> str:
    """Return the name, with a number if it is not the first of its name."""
    names[name] += 1
    return name if names[name] == 1 else _unique(f"{name}_{names[name]}", names)


def _settings(path: Path, clip: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a clip's metadata, by dotted key; whether there are such, the run file's reader checks."""
    settings = plain(own.get("settings", {}))
    if not isinstance(settings, dict):
        raise InputError(f"timeline {path}: {clip}: settings: expected a mapping, got {show(settings)}")
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    for key in found:
        if key in _OF_THE_CLIP:
            raise InputError(f"timeline {path}: {clip}: settings: {key}: the clip itself decides it; leave it out")
        if settings_that_name().get(key) in ("program", "signer"):
            raise InputError(
                f"timeline {path}: {clip}: {key}: a timeline may not name a program or a signer; name it with --set"
            )
    if own.get("negative_prompt"):
        found.setdefault("negative_prompt", str(own["negative_prompt"]))
    return found


def _takes_timecode(shot: Mapping[str, Any], config: RunConfig, fps: Fraction) -> bool:
    codec = shot.get("output.codec", config.output.codec)
    return "output.timecode" not in shot and codec in ("auto", *FORMATS) and holds_timecode(codec, fps)


def _kept(own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: own[key] for key in ("prompt", "negative_prompt", "settings") if own.get(key)}


def keep_timeline(folder: Path, timeline: Timeline) -> None:
    """Write the timeline of a batch into its folder."""
    with atomic_path(folder / KEPT) as temporary:
        temporary.write_text(timeline.otio.to_json_string(), encoding="utf-8")


def kept_timeline(folder: Path) -> Timeline | None:
    """Return the timeline that a batch was made for; None if it was made for none. Raises InputError."""
    path = folder / KEPT
    return read_timeline(path) if path.exists() else None

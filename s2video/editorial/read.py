"""Timelines from files: .otio, .edl (CMX 3600) and .xml (Final Cut Pro 7), within a bound, as one timeline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..batch.run_file import TIMELINES, is_timeline
from ..errors import InputError
from ..media.timecode import DROP_RATES
from ..system.json_reader import parse_json
from ..system.text_file import read_text_file
from .otio import NAMESPACE, exact_rate, frames_of, label, library, metadata_of, reason_of

_EVENT = re.compile(  # within a line: \s would try each run of empty lines from each of them
    r"^[ \t]*\d+[ \t]+\S+[ \t]+\S+[ \t]+\S+(?:[ \t]+\d+)?((?:[ \t]+\d\d[:;]\d\d[:;]\d\d[:;]\d\d){4})[ \t]*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Timeline:
    """A timeline of OpenTimelineIO, with what it holds only as a floating-point number or not at all.

    Attributes:
        fps: exact frame rate.
        drop: whether timecodes drop labels.
    """

    otio: Any
    fps: Fraction
    drop: bool

    @property
    def start(self) -> str:
        """Timecode of its first frame."""
        begin = self.otio.global_start_time
        return label(0 if begin is None else frames_of(begin, self.fps), self.fps, drop=self.drop)


def check_suffix(path: Path) -> str:
    """Return the suffix of a timeline's file, in lower case. Raises InputError for another one."""
    if not is_timeline(path):
        raise InputError(f"timeline {path}: expected a name that ends in {', '.join(TIMELINES)}, got {path.name!r}")
    return path.suffix.lower()


def read_timeline(path: Path, fps: Fraction | None = None) -> Timeline:
    """Read a timeline.

    Args:
        fps: of an EDL, which has none; None: 30000/1001 if it is drop-frame, and else an error.

    Raises:
        InputError: not a timeline in the format of the suffix, or several, or one without a clip.
    """
    suffix, text = check_suffix(path), read_text_file(path, "timeline")
    otio = library()
    found: Any
    try:
        if suffix == ".otio":
            parse_json(text, str(path))  # refuses what is too deep or too large
            found = otio.adapters.read_from_string(text, "otio_json")
        elif suffix == ".xml":
            if "<!ENTITY" in text:
                raise InputError(f"timeline {path}: expected XML without entities of its own, got <!ENTITY")
            found = otio.adapters.read_from_string(text, "fcp_xml")
        else:
            fps = fps or _rate_of_edl(path, text)
            plain = re.sub(r"^(\*\s*LOC:\s*\S+)", lambda found: found[1].replace(";", ":"), text, flags=re.MULTILINE)
            found = otio.adapters.read_from_string(plain, "cmx_3600", rate=float(fps))
    except InputError:
        raise
    except Exception as error:  # the adapters raise errors of many kinds for damaged files
        raise InputError(
            f"timeline {path}: expected a timeline, got an error ({reason_of(error)}); export it again"
        ) from None
    timeline = _single(path, found, otio)
    clips = [clip for track in timeline.video_tracks() for clip in track.find_clips()]
    if not clips:
        raise InputError(f"timeline {path}: expected a video track with clips, got none")
    try:
        rate = fps if fps is not None and suffix == ".edl" else _rate_of(timeline, clips)
        for clip in clips:
            _unpack(clip)
            if frames_of(clip.duration(), rate) <= 0:
                raise InputError(f"timeline {path}: expected clips with frames, got none in {clip.name!r}")
        if suffix == ".edl":
            _set_start(timeline, text, rate, otio)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"timeline {path}: expected clips with lengths, got an error ({reason_of(error)}); export it again"
        ) from None
    return Timeline(timeline, rate, _drops(timeline, text, suffix, rate))


def _single(path: Path, found: Any, otio: Any) -> Any:
    timelines = [found] if isinstance(found, otio.schema.Timeline) else list(_timelines(found, otio))
    if len(timelines) != 1:
        raise InputError(f"timeline {path}: expected one timeline, got {len(timelines)}; export one sequence")
    return timelines[0]


def _timelines(found: Any, otio: Any) -> Iterator[Any]:
    if isinstance(found, otio.schema.Timeline):
        yield found
    elif isinstance(found, otio.schema.SerializableCollection | list):
        for child in found:
            yield from _timelines(child, otio)


def _rate_of(timeline: Any, clips: list[Any]) -> Fraction:
    begin = timeline.global_start_time
    fps = exact_rate(begin.rate if begin is not None else clips[0].duration().rate)
    if not 1 <= fps <= 1000:
        raise InputError(f"timeline: expected a frame rate from 1 to 1000, got {fps}")
    return fps


def _rate_of_edl(path: Path, text: str) -> Fraction:
    if _is_drop_edl(text):
        return Fraction(30000, 1001)
    raise InputError(
        f"timeline {path}: an EDL has no frame rate; name it with --set output.fps=24000/1001, or as it is"
    )


def _is_drop_edl(text: str) -> bool:
    events = [found[1] for found in _EVENT.finditer(text)]
    return any(";" in event for event in events) or re.search(r"^FCM:\s*DROP", text, re.MULTILINE) is not None


def _set_start(timeline: Any, text: str, fps: Fraction, otio: Any) -> None:
    """Set the start of the record, which the adapter leaves out."""
    first = _EVENT.search(text)
    if first is not None and timeline.global_start_time is None:
        timecode = first[1].split()[2]
        if _is_drop_edl(text):
            timecode = ";".join(timecode.replace(";", ":").rsplit(":", 1))
        timeline.global_start_time = otio.opentime.from_timecode(timecode, float(fps))


def _drops(timeline: Any, text: str, suffix: str, fps: Fraction) -> bool:
    if fps not in DROP_RATES:
        return False
    if suffix == ".edl":
        return _is_drop_edl(text)
    if suffix == ".xml":
        found = re.findall(r"<displayformat>\s*(N?DF)\s*</displayformat>", text)
        return not found or found[-1] == "DF"  # the sequence's own comes last
    return bool(metadata_of(timeline).get("drop", True))


def _unpack(clip: Any) -> None:
    """Take our metadata out of the comment that `fcp_xml.write_xml` has put it into."""
    comments = metadata_of(clip, "fcp_xml").get("comments")
    text = str(comments.get("mastercomment1")) if isinstance(comments, Mapping) else ""
    if text.startswith(f"{NAMESPACE} {{") and NAMESPACE not in clip.metadata:
        try:
            facts = parse_json(text.removeprefix(f"{NAMESPACE} "), "a comment")
            clip.metadata[NAMESPACE] = facts
        except InputError:
            return  # it was edited

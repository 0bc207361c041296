"""Timelines as XML of Final Cut Pro 7, which Premiere and Resolve read, written with OpenTimelineIO's adapter.

The adapter writes every timecode without drop-frame, places markers at timecodes instead of frames of the medium, gives
silent files a sound track, and leaves out the size of the picture and our metadata. This adds or corrects them.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree as Tree

from ..errors import InputError
from ..media.timecode import labels_per_second
from .otio import NAMESPACE, label, library, metadata_of, plain, reason_of

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_xml(timeline: Any, fps: Fraction, *, drop: bool, size: tuple[int, int] | None, sound: bool) -> str:
    """Return the timeline as an xmeml document.

    Args:
        size: width and height of the pictures in pixels; None if unknown.
        sound: whether any medium has sound.

    Raises:
        InputError: the timeline has something that the format, or its adapter, cannot hold.
    """
    otio = library()
    values = _legal(json.loads(timeline.to_json_string()))
    copy = otio.adapters.read_from_string(json.dumps(values), "otio_json")
    for clip in copy.find_clips():
        _describe(clip)
    # the adapter takes no sequences of frames
    for clip in copy.find_clips():
        if isinstance(clip.media_reference, otio.schema.ImageSequenceReference):
            clip.media_reference = _as_file(clip.media_reference)
    try:
        root = Tree.fromstring(otio.adapters.write_to_string(copy, "fcp_xml"))
    except Exception as error:  # the adapter does not know all that a timeline of another program can hold
        raise InputError(
            f"XML: expected a timeline that it can hold, got an error ({reason_of(error)}); write .otio"
        ) from None
    for clip_item in root.iter("clipitem"):
        _correct_markers(clip_item)
    for timecode in root.iter("timecode"):
        frame = timecode.find("frame")
        if frame is not None and frame.text:
            _set(timecode, "string", label(int(frame.text), fps, drop=drop))
            _set(timecode, "displayformat", "DF" if drop else "NDF")
    if not sound:
        for media in root.iter("media"):
            for audio in media.findall("audio"):
                if len(audio) == 0:
                    media.remove(audio)
    for style in root.iter("format"):
        if size is not None and len(style) == 0:
            _add_size(style, fps, size)
    Tree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE xmeml>\n{Tree.tostring(root, encoding="unicode")}\n'


def _legal(value: Any) -> Any:
    """Return JSON whose texts have "?" for the characters that XML cannot hold, such as a bell in a prompt."""
    if isinstance(value, dict):
        return {_legal(key): _legal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_legal(inner) for inner in value]
    return _ILLEGAL.sub("?", value) if isinstance(value, str) else value


def _describe(clip: Any) -> None:
    """Put our metadata where editors show it, and where `read_timeline` finds it."""
    facts = plain(metadata_of(clip))
    if not facts:
        return
    own = dict(metadata_of(clip, "fcp_xml"))
    own["logginginfo"] = {
        "description": str(facts.get("prompt", "")),
        "scene": str(facts.get("shot", "")),
        "shottake": str(facts.get("take", "")),
        "lognote": str(facts.get("note", "")),
    }
    own["comments"] = {"mastercomment1": f"{NAMESPACE} {json.dumps(facts, default=str, ensure_ascii=False)}"}
    clip.metadata["fcp_xml"] = own


def _as_file(sequence: Any) -> Any:
    """Return a sequence as Resolve names one: NAME.[1001-1005].exr."""
    otio = library()
    first, frames = sequence.start_frame, round(sequence.available_range.duration.value)
    span = f"[{first}-{first + frames - 1}]"
    url = f"{sequence.target_url_base}{sequence.name_prefix}{span}{sequence.name_suffix}"
    reference = otio.schema.ExternalReference(url, sequence.available_range)
    reference.name = sequence.name
    return reference


def _correct_markers(clip_item: Tree.Element) -> None:
    start = clip_item.findtext("file/timecode/frame")
    for marker in clip_item.findall("marker"):
        for name in ("in", "out"):
            value = marker.findtext(name)
            if start and value and int(value) >= int(start):
                _set(marker, name, str(int(value) - int(start)))


def _add_size(style: Tree.Element, fps: Fraction, size: tuple[int, int]) -> None:
    traits = Tree.SubElement(style, "samplecharacteristics")
    rate = Tree.SubElement(traits, "rate")
    Tree.SubElement(rate, "timebase").text = str(labels_per_second(fps))
    Tree.SubElement(rate, "ntsc").text = "TRUE" if fps.denominator == 1001 else "FALSE"
    Tree.SubElement(traits, "width").text, Tree.SubElement(traits, "height").text = map(str, size)
    Tree.SubElement(traits, "pixelaspectratio").text = "square"
    Tree.SubElement(traits, "fielddominance").text = "none"


def _set(parent: Tree.Element, name: str, text: str) -> None:
    element = parent.find(name)
    if element is None:
        element = Tree.SubElement(parent, name)
    element.text = text

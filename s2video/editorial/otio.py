"""OpenTimelineIO, which reads and writes timelines, and frame rates as it holds them: floating-point numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import InputError
from ..media.timecode import DROP_RATES, Timecode, labels_per_second

NAMESPACE = "s2video"  # of our metadata in timelines, clips and media
_NTSC = tuple(Fraction(number * 1000, 1001) for number in (24, 30, 48, 60, 120))
_TOLERANCE = 0.005  # 23.976 and 23.98 are both written for 24000/1001


def library() -> ModuleType:
    """Return the module. Raises InputError if it, or one of its formats, is not installed."""
    try:
        otio = import_module("opentimelineio")
        for name in ("otio_cmx3600_adapter", "otio_fcp_adapter"):
            import_module(name)
    except ImportError as error:
        raise InputError(
            f"timelines need OpenTimelineIO with its EDL and FCP adapters, got an error ({error}); pip install "
            "'s2video[editorial]'"
        ) from None
    return otio


def exact_rate(rate: float) -> Fraction:
    """Return the exact frame rate that a floating-point number stands for: 23.976 is 24000/1001."""
    nearest = min(_NTSC, key=lambda exact: abs(float(exact) - rate))
    if abs(float(nearest) - rate) < _TOLERANCE:
        return nearest
    return Fraction(rate).limit_denominator(1001)


def is_drop(timecode: str | None, fps: Fraction) -> bool:
    """Return whether labels are dropped: as a timecode says, or, without one, where that is usual."""
    return fps in DROP_RATES and (timecode is None or ";" in timecode)


def label(frames: int, fps: Fraction, *, drop: bool) -> str:
    """Return the timecode of frame `frames` since 00:00:00:00; after 24 hours it starts again."""
    zero = Timecode(0, labels_per_second(fps), DROP_RATES[fps] if drop else 0)
    return str(zero.later(frames))


def frames_of(time: Any, fps: Fraction) -> int:
    """Return a RationalTime as whole frames at this rate. Raises InputError for one that is no number of frames."""
    try:
        return round(Fraction(time.value).limit_denominator(1_000_000) * fps / exact_rate(time.rate))
    except (ValueError, OverflowError, ZeroDivisionError):  # NaN, infinity, a rate of 0
        raise InputError(
            f"timeline: expected times in frames, got {time.value} at a rate of {time.rate}; export it again"
        ) from None


def metadata_of(item: Any, name: str = NAMESPACE) -> Mapping[str, Any]:
    """Return what the metadata of a timeline, clip, marker or medium has under a name; empty if that is no mapping."""
    found = item.metadata.get(name)
    return found if isinstance(found, Mapping) else {}


def plain(value: Any) -> Any:
    """Return a value of metadata with dicts and lists in place of OpenTimelineIO's own types."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value


def url_of(clip: Any) -> str | None:
    """Return the URL of a clip's file, or of a sequence's folder; None if it has no medium."""
    reference = clip.media_reference
    return getattr(reference, "target_url", None) or getattr(reference, "target_url_base", None)


def reason_of(error: Exception) -> str:
    """Return an adapter's error in one line; adapters raise errors of many kinds."""
    return " ".join(str(error).split())[:200] or type(error).__name__

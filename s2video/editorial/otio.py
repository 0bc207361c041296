"""OpenTimelineIO, which reads and writes timelines, and frame rates as it holds them: floating-point numbers."""

from __future__ import annotations

from fractions import Fraction
from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import InputError
from ..media.timecode import DROP_RATES, Timecode

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
    zero = Timecode(0, int(fps + Fraction(1, 2)), DROP_RATES[fps] if drop else 0)
    return str(zero.later(frames))


def frames_of(time: Any, fps: Fraction) -> int:
    """Return a RationalTime as whole frames at this rate."""
    return round(Fraction(time.value).limit_denominator(1_000_000) * fps / exact_rate(time.rate))

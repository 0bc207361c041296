"""Tests of timecode labels against the definition: count every frame and drop the labels that SMPTE 12M drops."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import pytest

from s2video.errors import InputError
from s2video.media.timecode import Timecode

NTSC = Fraction(30000, 1001)


def labels(rate: int, dropped: int) -> Iterator[str]:
    """Return every label of a day, in order."""
    mark = ";" if dropped else ":"
    for minute in range(24 * 60):
        for second in range(60):
            skip = dropped if second == 0 and minute % 10 else 0
            for frame in range(skip, rate):
                yield f"{minute // 60:02d}:{minute % 60:02d}:{second:02d}{mark}{frame:02d}"


@pytest.mark.parametrize(
    ("start", "fps"),
    [("00:00:00;00", NTSC), ("00:00:00;00", 2 * NTSC), ("00:00:00:00", NTSC), ("00:00:00:00", Fraction(24000, 1001))],
)
def test_labels_of_the_first_minutes(start: str, fps: Fraction) -> None:
    first = Timecode.parse(start, fps)
    for count, label in enumerate(islice(labels(first.rate, first.dropped), first.rate * 60 * 11)):
        if count % 59 < 9:  # all kinds of them: 59 has no factor in common with any rate
            assert str(first.later(count)) == label
            assert Timecode.parse(label, fps).count == count


def test_a_day_has_an_end() -> None:
    assert str(Timecode.parse("23:59:59;29", NTSC).later(1)) == "00:00:00;00"
    assert str(Timecode.parse("23:59:59:23", Fraction(24)).later(2)) == "00:00:00:01"


def test_drop_frame_keeps_up_with_the_clock() -> None:
    """An hour of 30000/1001 frames per second has 107892 frames, plus or minus one."""
    assert str(Timecode.parse("00:00:00;00", NTSC).later(107892)) == "01:00:00;00"


def test_packed_bits() -> None:
    assert hex(Timecode.parse("12:34:56:07", Fraction(24)).packed()) == "0x12345607"
    assert hex(Timecode.parse("01:00:00;29", NTSC).packed()) == "0x1000069"  # 0x40 is drop-frame


@pytest.mark.parametrize(
    ("text", "fps", "message"),
    [
        ("1:00:00:00", 24, "HH:MM:SS:FF"),
        ("01:00:00", 24, "HH:MM:SS:FF"),
        ("", 24, "HH:MM:SS:FF"),
        ("٠١:00:00:00", 24, "HH:MM:SS:FF"),
        ("01:00:00:00\n", 24, "HH:MM:SS:FF"),
        ("24:00:00:00", 24, "at most 23:59:59:23"),
        ("00:60:00:00", 24, "at most"),
        ("00:00:60:00", 24, "at most"),
        ("00:00:00:24", Fraction(24000, 1001), "at most 23:59:59:23"),
        ("00:00:00;00", 24, "drop-frame"),
        ("00:00:00;00", 30, "drop-frame"),
        ("00:01:00;01", NTSC, "no such label"),
        ("00:00:00:00", Fraction(1, 3), "frame rate from 1 to 100"),
        ("00:00:00:00", 120, "frame rate from 1 to 100"),
    ],
)
def test_labels_that_there_are_not(text: str, fps: int | Fraction, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Timecode.parse(text, Fraction(fps))

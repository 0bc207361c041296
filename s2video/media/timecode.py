"""SMPTE timecode: HH:MM:SS:FF, or HH:MM:SS;FF if labels are dropped to match the clock. Knows no files."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from ..errors import InputError

DROP_RATES = {Fraction(30000, 1001): 2, Fraction(60000, 1001): 4}  # labels dropped per minute, except every tenth
MAX_RATE = 100  # two digits count the frames of a second


def labels_per_second(fps: Fraction) -> int:
    """Return the frame rate rounded to a whole number, by which timecodes count."""
    return int(fps + Fraction(1, 2))


@dataclass(frozen=True)
class Timecode:
    """The timecode of one frame.

    count: frames since 00:00:00:00.
    rate: labels per second, which is the rounded frame rate.
    dropped: labels dropped at the start of each minute except every tenth; 0 for none.
    """

    count: int
    rate: int
    dropped: int

    @classmethod
    def parse(cls, text: str, fps: Fraction) -> "Timecode":
        """Parse a label at this frame rate. Raise InputError if it has no such label."""
        rate = labels_per_second(fps)
        if not 1 <= rate <= MAX_RATE:
            raise InputError(
                f"timecode: expected a frame rate from 1 to {MAX_RATE}, got {fps}; set the timecode to null"
            )
        match = re.fullmatch(r"(\d\d):(\d\d):(\d\d)([:;])(\d\d)", text, re.ASCII)
        if match is None:
            raise InputError(f'timecode: expected HH:MM:SS:FF, such as "01:00:00:00", got {text[:40]!r}')
        hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
        if hours > 23 or minutes > 59 or seconds > 59 or frames >= rate:
            raise InputError(f"timecode {text}: expected at most 23:59:59:{rate - 1:02d} at {fps} frames per second")
        dropped = 0
        if match[4] == ";":
            if fps not in DROP_RATES:
                raise InputError(
                    f'timecode {text}: drop-frame (";") needs 30000/1001 or 60000/1001 frames per second, got {fps}; '
                    'write ":" instead'
                )
            dropped = DROP_RATES[fps]
            if seconds == 0 and frames < dropped and minutes % 10:
                raise InputError(f"timecode {text}: drop-frame has no such label; start with frame {dropped:02d}")
        minutes += 60 * hours
        count = rate * (60 * minutes + seconds) + frames - dropped * (minutes - minutes // 10)
        return cls(count, rate, dropped)

    def later(self, num_frames: int) -> "Timecode":
        """Return the label `num_frames` later. It starts again at zero after 24 hours."""
        a_day = 144 * (600 * self.rate - 9 * self.dropped)
        return replace(self, count=(self.count + num_frames) % a_day)

    def fields(self) -> tuple[int, int, int, int]:
        """Return hours, minutes, seconds and frames."""
        tens, rest = divmod(self.count, 600 * self.rate - 9 * self.dropped)
        label = self.count + 9 * self.dropped * tens
        if rest >= 60 * self.rate:  # the first of ten minutes drops no labels
            label += self.dropped * (1 + (rest - 60 * self.rate) // (60 * self.rate - self.dropped))
        seconds, frames = divmod(label, self.rate)
        return seconds // 3600, seconds // 60 % 60, seconds % 60, frames

    def __str__(self) -> str:
        hours, minutes, seconds, frames = self.fields()
        return f"{hours:02d}:{minutes:02d}:{seconds:02d}{';' if self.dropped else ':'}{frames:02d}"

    def packed(self) -> int:
        """Return the 32 bits of SMPTE 12M as OpenEXR stores them: decimal digits of four bits, drop-frame in bit 6."""
        hours, minutes, seconds, frames = (value // 10 << 4 | value % 10 for value in self.fields())
        return hours << 24 | minutes << 16 | seconds << 8 | frames | (bool(self.dropped) << 6)

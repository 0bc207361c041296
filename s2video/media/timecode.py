"""SMPTE timecode: HH:MM:SS:FF, and HH:MM:SS;FF where labels are dropped to keep up with the clock. Knows no files."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from ..errors import InputError

DROP_RATES = {Fraction(30000, 1001): 2, Fraction(60000, 1001): 4}  # labels left out a minute, but every tenth
MAX_RATE = 100  # two digits count the frames of a second


@dataclass(frozen=True)
class Timecode:
    """The label of one frame.

    count: frames since 00:00:00:00.
    rate: labels a second has: the frame rate, rounded.
    dropped: labels left out at the start of each minute but every tenth; 0: none.
    """

    count: int
    rate: int
    dropped: int

    @classmethod
    def parse(cls, text: str, fps: Fraction) -> "Timecode":
        """Read a label at this frame rate. Raises InputError."""
        rate = int(fps + Fraction(1, 2))
        if not 1 <= rate <= MAX_RATE:
            raise InputError(
                f"timecode: expected a frame rate from 1 to {MAX_RATE}, came {fps}: leave the timecode out"
            )
        match = re.fullmatch(r"(\d\d):(\d\d):(\d\d)([:;])(\d\d)", text, re.ASCII)
        if match is None:
            raise InputError(f'timecode: expected HH:MM:SS:FF, such as "01:00:00:00", came {text!r}')
        hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
        if hours > 23 or minutes > 59 or seconds > 59 or frames >= rate:
            raise InputError(f"timecode {text}: expected at most 23:59:59:{rate - 1:02d} at {fps} frames a second")
        dropped = 0
        if match[4] == ";":
            if fps not in DROP_RATES:
                raise InputError(
                    f'timecode {text}: ";" is drop-frame, which is for 30000/1001 and 60000/1001 frames a second, not '
                    f'for {fps}: write ":" instead'
                )
            dropped = DROP_RATES[fps]
            if seconds == 0 and frames < dropped and minutes % 10:
                raise InputError(f"timecode {text}: drop-frame has no such label: begin with frame {dropped:02d}")
        minutes += 60 * hours
        count = rate * (60 * minutes + seconds) + frames - dropped * (minutes - minutes // 10)
        return cls(count, rate, dropped)

    def later(self, num_frames: int) -> "Timecode":
        """The label so many frames later; after 24 hours it begins again."""
        a_day = 144 * (600 * self.rate - 9 * self.dropped)
        return replace(self, count=(self.count + num_frames) % a_day)

    def fields(self) -> tuple[int, int, int, int]:
        """Hours, minutes, seconds, frames."""
        tens, rest = divmod(self.count, 600 * self.rate - 9 * self.dropped)
        label = self.count + 9 * self.dropped * tens
        if rest >= 60 * self.rate:  # the first of ten minutes is whole
            label += self.dropped * (1 + (rest - 60 * self.rate) // (60 * self.rate - self.dropped))
        seconds, frames = divmod(label, self.rate)
        return seconds // 3600, seconds // 60 % 60, seconds % 60, frames

    def __str__(self) -> str:
        hours, minutes, seconds, frames = self.fields()
        return f"{hours:02d}:{minutes:02d}:{seconds:02d}{';' if self.dropped else ':'}{frames:02d}"

    def packed(self) -> int:
        """The 32 bits of SMPTE 12M, as OpenEXR keeps them: decimal digits of four bits, drop-frame in bit 6."""
        hours, minutes, seconds, frames = (value // 10 << 4 | value % 10 for value in self.fields())
        return hours << 24 | minutes << 16 | seconds << 8 | frames | (bool(self.dropped) << 6)

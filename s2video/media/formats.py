"""The file formats of videos, with the options and limits of each.

`FORMATS` is the whole table; a new format is a new row. Knows no pixels and starts no process.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from ..errors import InputError
from .credentials import Credentials, check_format
from .timecode import MAX_RATE, Timecode, labels_per_second

MAX_RATE_TERM = 1_001_000  # ffmpeg rounds a frame rate whose numerator or denominator is larger
MAX_EXR_TIMECODE_RATE = 30  # the highest frame rate for which an EXR header can hold a timecode
MAX_START_NUMBER = 2**30  # ffmpeg counts frames in 32 bits

Codec = Literal["h264", "h265", "prores", "dnxhr", "png", "exr"]


@dataclass(frozen=True)
class Format:
    """One file format of videos.

    suffix: the end of its paths.
    pixel_format: the encoder's input, by ffmpeg's name; rgbh means half floats, for OpenImageIO.
    encoder: the encoder, by ffmpeg's name; None means OpenImageIO.
    encoding, container: ffmpeg's options for the encoder and for the container.
    has_crf: whether the encoder takes a constant rate factor.
    sound: ffmpeg's options for a sound track; None if the format has no sound.
    has_timecode: whether the format can hold a timecode.
    has_reel: whether it can hold the name of a reel.
    is_sequence: whether it has one file per frame, all in one folder.
    multiple, least: for width and height in pixels; each must be a multiple of `multiple` and at least `least`.
    """

    suffix: str
    pixel_format: str
    encoder: str | None
    encoding: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    has_crf: bool = False
    sound: tuple[str, ...] | None = None
    has_timecode: bool = True
    has_reel: bool = True
    is_sequence: bool = False
    multiple: tuple[int, int] = (1, 1)
    least: tuple[int, int] = (1, 1)


# faststart puts the index first, so that a browser can play the file while it loads.
_MP4 = ("-movflags", "+faststart", "-f", "mp4")
_MOV = ("-f", "mov")
_AAC = ("-c:a", "aac", "-b:a", "320k")
_PCM = ("-c:a", "pcm_s24le")

FORMATS: dict[Codec, Format] = {
    "h264": Format(
        suffix=".mp4",
        pixel_format="yuv420p",
        encoder="libx264",
        encoding=("-pix_fmt", "yuv420p"),
        container=_MP4,
        has_crf=True,
        has_reel=False,
        sound=_AAC,
        multiple=(2, 2),
    ),
    "h265": Format(
        suffix=".mp4",
        pixel_format="yuv420p10le",
        encoder="libx265",
        # x265 has its own log, which would appear in the error message of a failure
        encoding=("-pix_fmt", "yuv420p10le", "-x265-params", "log-level=error"),
        container=("-tag:v", "hvc1", *_MP4),  # Apple's players want this tag
        has_crf=True,
        has_reel=False,
        sound=_AAC,
        multiple=(2, 2),
        least=(16, 16),
    ),
    "prores": Format(
        suffix=".mov",
        pixel_format="yuv422p10le",
        encoder="prores_ks",
        encoding=("-profile:v", "hq", "-vendor", "apl0", "-pix_fmt", "yuv422p10le"),
        container=_MOV,
        sound=_PCM,
        multiple=(2, 1),
    ),
    "dnxhr": Format(
        suffix=".mov",
        pixel_format="yuv422p10le",
        encoder="dnxhd",
        encoding=("-profile:v", "dnxhr_hqx", "-pix_fmt", "yuv422p10le"),
        container=_MOV,
        sound=_PCM,
        # ffmpeg's encoder refuses smaller pictures, and crashes on other widths (seen in 9.0)
        multiple=(16, 2),
        least=(256, 120),
    ),
    "png": Format(
        suffix=".png",
        pixel_format="rgb48le",
        encoder="png",
        encoding=("-pix_fmt", "rgb48be"),
        container=("-f", "image2"),
        has_timecode=False,
        is_sequence=True,
    ),
    "exr": Format(suffix=".exr", pixel_format="rgbh", encoder=None, is_sequence=True),
}


@dataclass(frozen=True)
class VideoSpec:
    """The settings for writing one video.

    fps: frames per second, exact; numerator and denominator at most 1,001,000.
    crf: constant rate factor of H.264 and H.265, 0 (lossless in H.264, but few players support it) to 51 (worst).
    timecode: timecode of the first frame, HH:MM:SS:FF.
    audio: a file whose first sound track is added, cut or padded with silence to the length of the video.
    start_number: number of the first frame's file in a sequence.
    ffmpeg: the program; None means the one in imageio-ffmpeg.
    credentials: whose signature the file gets (see `credentials.py`); None: none.
    reel: name of the reel; MOV stores it with the timecode, which must be there.
    """

    fps: Fraction
    crf: int = 18
    codec: Codec = "h264"
    timecode: str | None = None
    audio: Path | None = None
    start_number: int = 1001
    ffmpeg: Path | None = None
    credentials: Credentials | None = None
    reel: str | None = None

    def __post_init__(self) -> None:
        if not (self.fps > 0 and max(self.fps.numerator, self.fps.denominator) <= MAX_RATE_TERM):
            raise InputError(
                f"expected a frame rate above 0 whose terms are at most {MAX_RATE_TERM}, got {self.fps}; "
                "give it as a whole number or as a fraction such as 24000/1001"
            )
        if not 0 <= self.crf <= 51:
            raise InputError(f"expected a crf from 0 to 51, got {self.crf}")
        if not 0 <= self.start_number <= MAX_START_NUMBER:
            raise InputError(f"expected a start number from 0 to {MAX_START_NUMBER}, got {self.start_number}")
        if self.audio is not None and self.format.sound is None:
            raise InputError(f"a {self.codec} sequence cannot hold sound; set output.audio to null")
        if self.credentials is not None:
            check_format(self.format.suffix)
        if self.timecode is not None:
            if not self.format.has_timecode:
                raise InputError(f"a {self.codec} sequence cannot hold a timecode; set output.timecode to null")
            Timecode.parse(self.timecode, self.fps)
            if not holds_timecode(self.codec, self.fps):
                raise InputError(
                    f"expected at most {MAX_EXR_TIMECODE_RATE} frames per second for a timecode in EXR, got "
                    f"{self.fps}; set output.timecode to null"
                )
        self._check_reel()

    def _check_reel(self) -> None:
        if self.reel is None:
            return
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", self.reel, re.ASCII):
            raise InputError(
                f"reel: expected 1 to 32 letters (a-z), digits, dots, dashes or underscores, got {self.reel[:60]!r}"
            )
        if not self.format.has_reel:
            raise InputError(f"{self.codec} files cannot hold the name of a reel; set output.reel to null")
        if self.format.suffix == ".mov" and self.timecode is None:
            raise InputError("reel: MOV stores it with the timecode; set output.timecode too, such as 01:00:00:00")

    @property
    def format(self) -> Format:
        return FORMATS[self.codec]

    def encoder_arguments(self) -> list[str]:
        """Return ffmpeg's arguments for the encoder and its settings."""
        assert self.format.encoder is not None, "OpenImageIO is not part of ffmpeg"
        crf = ["-crf", str(self.crf)] if self.format.has_crf else []
        return ["-c:v", self.format.encoder, *crf, *self.format.encoding]

    def container_arguments(self) -> list[str]:
        """Return ffmpeg's arguments for the container. The file name must follow them."""
        timecode = [] if self.timecode is None else ["-timecode", self.timecode]
        numbers = ["-start_number", str(self.start_number)] if self.format.is_sequence else []
        reel = ["-metadata:s:v:0", f"reel_name={self.reel}"] if self.reel and not self.format.is_sequence else []
        return [*timecode, *reel, *numbers, *self.format.container]

    def check_size(self, width: int, height: int) -> None:
        """Raise InputError unless the format takes frames of this size."""
        (across, down), (least_width, least_height) = self.format.multiple, self.format.least
        if min(width, height) <= 0 or width % across or height % down:
            what = {(1, 1): "a width and height", (2, 2): "an even width and height", (2, 1): "an even width"}
            wanted = what.get((across, down), f"a width that is a multiple of {across} and an even height")
            raise InputError(
                f"{self.codec}: expected {wanted} above 0, got {width}x{height} px; change the size, or choose "
                "another output.codec"
            )
        if width < least_width or height < least_height:
            raise InputError(
                f"{self.codec}: expected at least {least_width}x{least_height} px, got {width}x{height} px; "
                "make the video larger, or choose another output.codec"
            )


def holds_timecode(codec: Codec | Literal["auto"], fps: Fraction) -> bool:
    """Return whether files of this format can hold a timecode at this frame rate. "auto" is h264 here."""
    most = MAX_EXR_TIMECODE_RATE if codec == "exr" else MAX_RATE
    return _known(codec).has_timecode and 1 <= labels_per_second(fps) <= most


def _known(codec: Codec | Literal["auto"]) -> Format:
    return FORMATS["h264" if codec == "auto" else codec]


def codec_for(path: Path, codec: Codec | Literal["auto"] = "auto") -> Codec:
    """Return the codec for a file called `path`. Raise InputError if codec and suffix do not match.

    "auto" chooses the codec by the suffix.
    """
    if not path.stem.strip("."):  # the folder of the sequence "..exr" would be the parent folder
        raise InputError(f"output {path}: expected a name before the suffix, got {path.name!r}")
    if codec != "auto":
        if path.suffix != FORMATS[codec].suffix:
            raise InputError(
                f"output {path}: expected a name that ends in {FORMATS[codec].suffix}, for codec {codec}, "
                f"got {path.name!r}"
            )
        return codec
    for name, format in FORMATS.items():
        if format.suffix == path.suffix:
            return name
    suffixes = list(dict.fromkeys(format.suffix for format in FORMATS.values()))
    raise InputError(
        f"output {path}: expected a name that ends in {', '.join(suffixes[:-1])} or {suffixes[-1]}, got {path.name!r}"
    )


def suffix_of(codec: Codec | Literal["auto"]) -> str:
    """Return the file suffix of a codec. "auto" gives that of h264."""
    return _known(codec).suffix


def place_of(path: Path) -> Path:
    """Return where a video called `path` is stored: the file itself, or the folder X for a sequence X.exr."""
    return path.with_suffix("") if FORMATS[codec_for(path)].is_sequence else path


def frame_name(path: Path, number: int) -> str:
    """Return the file name of one frame in a sequence called `path`, such as X.1001.exr."""
    return f"{path.stem}.{number:04d}{path.suffix}"


def sound_name(path: Path) -> str:
    """Return the file name of the sound in the folder of a sequence called `path`, such as X.wav."""
    return f"{path.stem}.wav"


def is_in_sequence(path: Path, name: str) -> bool:
    """Return whether a file of this name belongs into the folder of a sequence called `path`: a frame, or the sound."""
    return is_frame_name(path, name) or name == sound_name(path)


def is_frame_name(path: Path, name: str) -> bool:
    """Return whether a file of this name is one frame of a sequence called `path`."""
    return re.fullmatch(rf"{re.escape(path.stem)}\.\d{{4,}}{re.escape(path.suffix)}", name, re.ASCII) is not None

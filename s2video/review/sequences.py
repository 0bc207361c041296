"""Videos made anywhere, as files or as folders of frames: found in a folder, and as inputs of ffmpeg."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from ..errors import InputError
from ..media.video import VideoInfo, probe_video
from ..records.sidecar_model import find_sidecar, read_sidecar
from ..system.files import is_hidden

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".m4v", ".avi")
FRAMES = (".png", ".exr", ".jpg", ".jpeg")
DEFAULT_RATE = Fraction(24)  # of a sequence without a sidecar, which alone tells its rate

# EXR files hold linear light; screens need sRGB (IEC 61966-2-1).
_CURVE = "if(lt(val/maxval,0.0031308),12.92*val,maxval*(1.055*pow(val/maxval,1/2.4)-0.055))"
TO_SRGB = ":".join(f"{channel}='{_CURVE}'" for channel in "rgb")


@dataclass(frozen=True)
class Source:
    """A video as an input of ffmpeg.

    Attributes:
        info: its properties; `path` is that of the file or the folder.
        arguments: of ffmpeg, which read it.
        filters: that bring its frames to the look of a video; ends in "," if there are any.
    """

    info: VideoInfo
    arguments: tuple[str, ...]
    filters: str = ""


def open_source(video: Path) -> Source:
    """Return a video file, or a folder of numbered frames such as X.1001.png, as an input of ffmpeg.

    The rate of a sequence is that of its sidecar, or 24.

    Raises:
        InputError: not a video, or a folder without frames, or whose numbers have a gap.
    """
    if not video.is_dir():
        return Source(probe_video(video), ("-i", f"file:{video}"))
    frames = frames_in(video)
    first = re.fullmatch(r"(.*?)(\d+)(\.[a-z]+)", frames[0].name)
    if first is None:
        raise InputError(f"{video}: expected numbered frames, such as X.1001.png, got {frames[0].name!r}; rename them")
    start, width = int(first[2]), len(first[2])
    for number, frame in enumerate(frames, start):
        if frame.name != f"{first[1]}{number:0{width}d}{first[3]}":
            raise InputError(f"{video}: expected the frame {number} next, got {frame.name!r}; number them without gaps")
    fps = _rate(video)
    info = replace(probe_video(frames[0]), path=video, num_frames=len(frames), fps=fps)
    pattern = f"file:{video / first[1]}".replace("%", "%%") + f"%0{width}d{first[3]}"
    rate = f"{fps.numerator}/{fps.denominator}"
    arguments = ("-f", "image2", "-framerate", rate, "-start_number", str(start), "-i", pattern)
    return Source(info, arguments, f"format=gbrp16,lutrgb={TO_SRGB}," if first[3] == ".exr" else "")


def frames_in(folder: Path) -> list[Path]:
    """Return the frames in a folder, all of the kind of the first one, sorted by name. Raises InputError if none."""
    files = sorted(file for file in folder.iterdir() if file.suffix in FRAMES and not file.name.startswith("."))
    if not files:
        raise InputError(f"{folder}: expected a folder with frames ({', '.join(FRAMES)}), got none")
    return [file for file in files if file.suffix == files[0].suffix]


def other_videos(folder: Path, known: Collection[Path]) -> Iterator[Path]:
    """Yield the video files below a folder that are not `known`, sorted by path; hidden ones are left out."""
    paths = {path.absolute() for path in known}
    for path in sorted(folder.rglob("*")):
        is_shown = path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden(path, folder)
        if is_shown and path.absolute() not in paths:
            yield path


def _rate(video: Path) -> Fraction:
    try:
        return read_sidecar(find_sidecar(video)).config.output.fps
    except InputError:
        return DEFAULT_RATE

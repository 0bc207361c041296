"""Contact sheets: one picture with a caption and a row of frames for each video."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import InputError, S2VideoError
from ..media.ffmpeg import Ffmpeg
from ..media.signature import sign
from ..media.video import VideoInfo, probe_video
from ..system.files import atomic_path
from .captions import Caption, caption_bar
from .sequences import FRAMES, TO_SRGB

THUMBNAIL_WIDTH = 240  # px
MARGIN = 8  # px
CAPTION_SIZE = 20  # px
MAX_JPEG = 65_500  # px, along each side
SUFFIXES = (".png", ".jpg", ".jpeg")


def contact_sheet(
    videos: Sequence[tuple[Path, Caption]], path: Path, *, columns: int = 6, font: Path | None = None
) -> None:
    """Write a PNG or JPEG, by the suffix of `path`, with `columns` evenly spaced frames of each video.

    They include the first and the last frame; a video with fewer frames shows all of them.

    Raises:
        InputError: if there are no videos, or a video, a caption or the path is invalid.
        S2VideoError: if ffmpeg fails.
    """
    if not videos:
        raise InputError(
            f"{path}: expected videos, got none; name video files, or a folder of videos with their sidecars"
        )
    if path.suffix not in SUFFIXES:
        raise InputError(f"output {path}: expected a name that ends in {', '.join(SUFFIXES)}, got {path.name!r}")
    width = columns * (THUMBNAIL_WIDTH + MARGIN) + MARGIN
    bars = [
        Image.fromarray(
            caption_bar([(caption, MARGIN, width - 2 * MARGIN)], width, size=CAPTION_SIZE, font=font, centred=False)
        )
        for _, caption in videos
    ]
    if path.suffix != ".png":
        height = sum(bar.height for bar in bars) + sum(_strip_height(video, THUMBNAIL_WIDTH) for video, _ in videos)
        _check_jpeg(path, width, height + MARGIN)
    with atomic_path(path) as temporary:
        rows = []
        for (video, _), bar in zip(videos, bars, strict=True):
            rows += [(0, bar), (MARGIN, strip(video, columns=columns, width=THUMBNAIL_WIDTH))]
        height = sum(row.height for _, row in rows) + MARGIN
        if path.suffix != ".png":
            _check_jpeg(path, width, height)
        sheet = Image.new("RGB", (width, height))
        y = 0
        for x, row in rows:
            sheet.paste(row, (x, y))
            y += row.height
        sheet.save(temporary, quality=92)
        sign(temporary)


def _check_jpeg(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_JPEG:
        raise InputError(
            f"output {path}: expected at most {MAX_JPEG} px along each side, as JPEG can hold, got {width}x{height}; "
            "write a .png, or name fewer videos"
        )


def _strip_height(video: Path, width: int) -> int:
    """Return the height of a video's `strip`, within 2 px, without decoding a frame; 0 for a folder without any."""
    first: Path | None = video
    if video.is_dir():
        first = min((file for file in video.iterdir() if file.suffix in FRAMES), default=None)
    if first is None:
        return 0
    info = probe_video(first)
    return info.height * width // info.width if info.width > width else info.height * (width // info.width)


def strip(video: Path, *, columns: int, width: int) -> Image.Image:
    """Return evenly spaced frames of a video in a row, `width` pixels each, with `MARGIN` between them, in RGB.

    Args:
        video: a file, or a sequence's folder.

    Raises:
        InputError: if it is not a video, is damaged, or has no frames.
    """
    if not video.is_dir():
        return _tiled(video, _spread(probe_video(video).num_frames, columns, video), width)
    files = sorted(file for file in video.iterdir() if file.suffix in FRAMES)
    stills = [_tiled(files[number], [0], width) for number in _spread(len(files), columns, video)]
    joined = Image.new("RGB", (len(stills) * (width + MARGIN) - MARGIN, stills[0].height))
    for number, still in enumerate(stills):
        joined.paste(still, (number * (width + MARGIN), 0))
    return joined


def _spread(num_frames: int, columns: int, video: Path) -> list[int]:
    if num_frames < 1:
        raise InputError(f"{video}: expected a video with frames, got none; use another file")
    return sorted({round(i * (num_frames - 1) / max(1, columns - 1)) for i in range(columns)})


def _tiled(file: Path, numbers: Sequence[int], width: int) -> Image.Image:
    select = "+".join(f"eq(n,{number})" for number in numbers)
    light = f"format=gbrp16,lutrgb={TO_SRGB}," if file.suffix == ".exr" else ""
    filters = f"select='{select}',{light}{_thumbnail(probe_video(file), width)},format=rgb24"
    filters += f",tile={len(numbers)}x1:padding={MARGIN}"
    with tempfile.TemporaryDirectory(prefix="s2video-") as folder:
        picture = Path(folder) / "strip.png"
        output = ["-vf", filters, "-frames:v", "1", "-update", "1", f"file:{picture}"]
        try:
            with Ffmpeg(["-i", f"file:{file}", *output]):
                pass
            if not picture.exists():
                raise S2VideoError("it has no such frames")
        except S2VideoError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{file}: its frames cannot be read ({reason}); use another file") from None
        with Image.open(picture) as image:
            return image.convert("RGB")


def _thumbnail(info: VideoInfo, width: int) -> str:
    """Return a filter to thumbnail width. Enlarges small pictures by an integer factor, repeating pixels, and pads."""
    if info.width > width:
        return f"scale={width}:-2:flags=area:out_range=pc"
    factor = width // info.width
    enlarged = f"scale={info.width * factor}:{info.height * factor}:flags=neighbor"
    return f"scale=flags=bilinear:out_range=pc,format=gbrp,{enlarged},pad={width}:ih"

"""A contact sheet: a row of frames for each video, under its caption, as one picture."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .captions import Caption, caption_bar
from .errors import InputError
from .ffmpeg import Ffmpeg
from .files import atomic_path
from .video import VideoInfo, probe_video

THUMBNAIL_WIDTH = 240  # px
MARGIN = 8  # px
CAPTION_SIZE = 20  # px
SUFFIXES = (".png", ".jpg", ".jpeg")


def contact_sheet(
    videos: Sequence[tuple[Path, Caption]], path: Path, *, columns: int = 6, font: Path | None = None
) -> None:
    """Write a PNG or JPEG, as the suffix of `path` says, with `columns` frames of each video, evenly spread.

    The first and the last frame are among them; a video with fewer frames shows all it has.

    Raises:
        InputError: there are no videos, or one of them, a caption or the path cannot be used.
        S2VideoError: ffmpeg failed.
    """
    if not videos:
        raise InputError(f"no videos for {path}: name video files, or a folder in which they lie beside their sidecars")
    if path.suffix not in SUFFIXES:
        raise InputError(f"output {path}: expected a name that ends in {', '.join(SUFFIXES)}, came {path.name!r}")
    width = columns * (THUMBNAIL_WIDTH + MARGIN) + MARGIN
    with atomic_path(path) as temporary:
        rows = []
        for video, caption in videos:
            taken = [(caption, MARGIN, width - 2 * MARGIN)]
            bar = caption_bar(taken, width, size=CAPTION_SIZE, font=font, centred=False)
            rows += [(0, Image.fromarray(bar)), (MARGIN, strip(video, columns=columns, width=THUMBNAIL_WIDTH))]
        sheet = Image.new("RGB", (width, sum(row.height for _, row in rows) + MARGIN))
        y = 0
        for x, row in rows:
            sheet.paste(row, (x, y))
            y += row.height
        sheet.save(temporary, quality=92)


def strip(video: Path, *, columns: int, width: int) -> Image.Image:
    """Frames of a video beside each other, `width` pixels each, `MARGIN` between them, RGB.

    Raises:
        InputError: no video, or one without frames.
        S2VideoError: ffmpeg failed.
    """
    info = probe_video(video)
    if info.num_frames < 1:
        raise InputError(f"{video} has no frames")
    chosen = sorted({round(i * (info.num_frames - 1) / max(1, columns - 1)) for i in range(columns)})
    select = "+".join(f"eq(n,{number})" for number in chosen)
    filters = f"select='{select}',{_thumbnail(info, width)},format=rgb24,tile={len(chosen)}x1:padding={MARGIN}"
    with tempfile.TemporaryDirectory(prefix="s2video-") as folder:
        picture = Path(folder) / "strip.png"
        with Ffmpeg(["-i", f"file:{video}", "-vf", filters, "-frames:v", "1", "-update", "1", f"file:{picture}"]):
            pass
        with Image.open(picture) as image:
            return image.convert("RGB")


def _thumbnail(info: VideoInfo, width: int) -> str:
    """A filter: small pictures are enlarged by a whole factor, pixel for pixel, as far as that goes."""
    if info.width > width:
        return f"scale={width}:-2:flags=area:out_range=pc"
    factor = width // info.width
    enlarged = f"scale={info.width * factor}:{info.height * factor}:flags=neighbor"
    return f"scale=flags=bilinear:out_range=pc,format=gbrp,{enlarged},pad={width}:ih"

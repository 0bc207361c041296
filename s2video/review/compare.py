"""Comparison of two videos in one: side by side or as a wipe, with captions.

Writes a review copy in 8-bit H.264 with the colour tags of `video.py`, for inputs of any codec. Does not know how they
were made; the caller provides the captions.
"""

from pathlib import Path
from typing import Literal

from ..errors import InputError, S2VideoError
from ..media.ffmpeg import TAG_BT709, Ffmpeg, h264_mp4, raw_input
from ..media.formats import VideoSpec, codec_for
from ..media.signature import sign
from ..media.video import VideoInfo, probe_video
from ..system.files import atomic_path
from .captions import Caption, caption_bar
from .sequences import open_source

MIN_HEIGHT = 384  # px; smaller videos are enlarged by an integer factor up to this height
GAP = 8  # px between two videos

_TO_BT709 = "out_color_matrix=bt709:out_range=tv"


def compare_videos(
    left: Path,
    right: Path,
    path: Path,
    captions: tuple[Caption, Caption],
    *,
    mode: Literal["side", "wipe"] = "side",
    font: Path | None = None,
) -> VideoInfo:
    """Write one MP4 of two videos.

    Each is a file, or a sequence's folder. They can differ in size, frame rate and length: the lower one is enlarged to
    the other's height, the slower one repeats frames, and the shorter one holds its last frame. Small videos are
    enlarged by repeating pixels.

    Args:
        mode: "side" puts them next to each other; "wipe" moves a vertical line to the right edge and back, once in the
            whole video, with `left` visible on its left and `right` on its right.
        font: see `caption_bar`.

    Raises:
        InputError: if a video, a caption or a path is invalid.
        S2VideoError: if ffmpeg fails.
    """
    codec_for(path, "h264")
    sources = (open_source(left), open_source(right))
    infos = tuple(source.info for source in sources)
    for info in infos:
        if not (info.fps > 0 and info.num_frames > 0):
            raise InputError(f"{info.path}: expected a video with frames and a frame rate, got none; use another file")
    height = max(info.height for info in infos)
    height = _even(height * max(1, MIN_HEIGHT // height))
    widths = [_even(info.width * height / info.height) for info in infos]
    fps = max(info.fps for info in infos)
    num_frames = max(round(info.num_frames * fps / info.fps) for info in infos)
    placed = [
        f"[{number}:v]setpts=PTS-STARTPTS,fps={fps},{source.filters}{_enlarged(source.info, width, height)}"
        for number, (source, width) in enumerate(zip(sources, widths, strict=True))
    ]
    if mode == "side":
        starts, columns, total_width = (0, widths[0] + GAP), widths, sum(widths) + GAP
        joined = [f"{placed[0]},pad={widths[0] + GAP}:{height}[left]", f"{placed[1]}[right]", "[left][right]hstack"]
    else:
        total_width = max(widths)
        starts, columns = (0, total_width // 2), [total_width // 2] * 2
        pad = f"pad={total_width}:{height}:(ow-iw)/2"
        joined = [f"{placed[0]},{pad}[left]", f"{placed[1]},{pad}[right]", f"[left][right]{_wipe(num_frames)}"]
    bar = caption_bar(
        [
            (caption, start + GAP, width - 2 * GAP)
            for caption, start, width in zip(captions, starts, columns, strict=True)
        ],
        total_width,
        size=max(16, height // 16),
        font=font,
    )
    graph = ";".join(
        [
            *joined[:2],
            f"{joined[2]},pad={total_width}:{height + len(bar)}:0:{len(bar)}[both]",
            f"[2:v]scale={_TO_BT709},format=yuv420p[captions]",
            f"[both][captions]overlay=0:0:eof_action=repeat,{TAG_BT709}[out]",
        ]
    )
    inputs = [*sources[0].arguments, *sources[1].arguments, *raw_input("rgb24", total_width, len(bar), fps)]
    chosen = ["-filter_complex", graph, "-map", "[out]", "-map_metadata", "-1"]
    with atomic_path(path) as temporary:
        with Ffmpeg([*inputs, *chosen, *h264_mp4(VideoSpec.crf), f"file:{temporary}"]) as ffmpeg:
            ffmpeg.send(bar)
        written = probe_video(temporary)
        expected = (total_width, height + len(bar))
        same_rate = infos[0].fps == infos[1].fps
        if (written.width, written.height) != expected or abs(written.num_frames - num_frames) > (not same_rate):
            raise S2VideoError(
                f"{path}: expected {num_frames} frames of {expected[0]}x{expected[1]} px, got {written.num_frames} of "
                f"{written.width}x{written.height} from ffmpeg; check its version"
            )
        sign(temporary)
    return probe_video(path)


def _even(size: float) -> int:
    return max(2, round(size / 2) * 2)


def _enlarged(info: VideoInfo, width: int, height: int) -> str:
    """Return filters that convert a video to BT.709 4:2:0 of this size."""
    # Colour is interpolated to full resolution first, as in players, and then pixels are repeated. Repeating the
    # half-resolution colour samples would leave a grey rim at the edges of saturated shapes.
    whole = width % info.width == 0 and height % info.height == 0
    flags = "neighbor" if whole else "bicubic"
    return (
        f"scale=flags=bilinear:{_TO_BT709},format=yuv444p,scale={width}:{height}:flags={flags},format=yuv420p,setsar=1"
    )


def _wipe(num_frames: int) -> str:
    """Return a filter of two inputs that shows the first on the left of a line that moves right and back."""
    line = f"(W*(0.5-0.5*cos(2*PI*(N-1)/{num_frames})))"  # N counts from 1
    choice = f"if(lt(X,{line}),A,B)"
    planes = [f"if(lt(abs(X-{line}),W/300),{value},{choice})" for value in (235, 128, 128)]  # white
    return "blend=" + ":".join(f"c{plane}_expr='{expression}'" for plane, expression in enumerate(planes))

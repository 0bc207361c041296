"""Review copies: small H.264 files of finished videos, with a slate in front and a line of facts around the picture.

The facts are above and below the picture, so they hide nothing of it. The video itself is only read. Colours are those
of `compare.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import InputError, S2VideoError
from ..media.ffmpeg import TAG_BT709, Ffmpeg, h264_mp4, raw_input
from ..media.formats import VideoSpec
from ..media.signature import sign
from ..media.timecode import Timecode
from ..media.video import VideoInfo, probe_video
from ..records.sidecar_model import Sidecar
from ..system.files import atomic_path
from .captions import load_font, wrapped
from .sequences import open_source

LEAST_HEIGHT = 64  # px of the picture
_LEAST_WIDTH = 480  # px, so that the lines can be read
_MARGIN = 8  # px
_TO_BT709 = "out_color_matrix=bt709:out_range=tv"
_SOURCE = re.compile(r"s2video (proxy|review copy) of the file with SHA-256 ([0-9a-f]{64})")


@dataclass(frozen=True)
class Facts:
    """What a review copy says about its video.

    Attributes:
        title: such as the shot and its version.
        details: for the line below the picture, such as the seed.
        slate: rows of the slate: name and value.
        first_number: number of the first frame; the slate has the one before.
        timecode: of the first frame; None: none.
        sha256: of the video, by which pages find its copies; None: unknown.
    """

    title: str
    details: str
    slate: tuple[tuple[str, str], ...]
    first_number: int = 1001
    timecode: str | None = None
    sha256: str | None = None


class Source(NamedTuple):
    """The video that a copy was made of.

    Attributes:
        sha256: of its file, as in its sidecar.
        is_plain: the copy has its frames and nothing else.
    """

    sha256: str
    is_plain: bool


def source_of(info: VideoInfo) -> Source | None:
    """Return what a copy says that it was made of; None for other videos, and copies of unknown ones."""
    match = _SOURCE.fullmatch(info.metadata.get("comment", ""))
    return None if match is None else Source(match[2], match[1] == "proxy")


def facts_of(video: Path, sidecar: Sidecar, *, shot: str = "", version: str = "", verdict: str = "") -> Facts:
    """Return what a copy of a video with a sidecar says.

    Args:
        shot, version, verdict: what it is in its batch; empty: it is in none.
    """
    config = sidecar.config
    guidance, sampling, output = config.guidance, config.sampling, config.output
    strength = f"push {guidance.s2_push:g}" if guidance.s2_push is not None else f"omega {guidance.s2_scale:g}"
    scales = f"{strength}, lambda {guidance.cfg_scale:g}"
    rows = {
        "shot": shot or video.stem,
        "version": version,
        "take": video.name,
        "verdict": verdict,
        "prompt": sidecar.prompt,
        "seed": str(sidecar.seed) + (f", masks {sidecar.mask_seed}" if sidecar.mask_seed != sidecar.seed else ""),
        "guidance": f"{scales}, {sampling.num_inference_steps} steps",
        "model": sidecar.model,
        "picture": f"{sampling.width}x{sampling.height}, {sampling.num_frames} frames, {output.fps} fps",
        "timecode": output.timecode or "",
        "sha256": sidecar.output.sha256[:16],
    }
    title = "  ".join(part for part in (shot or video.stem, version) if part)
    shown = tuple((name, text) for name, text in rows.items() if text)
    details = f"seed {sidecar.seed}, {scales}"
    return Facts(title, details, shown, output.start_number, output.timecode, sidecar.output.sha256)


def write_copy(
    video: Path, path: Path, facts: Facts, *, height: int = 540, slate: bool = True, burn_in: bool = True
) -> VideoInfo:
    """Write a review copy.

    Args:
        video: a file, or a sequence's folder.
        path: ends in .mp4.
        height: of the picture, in pixels; a smaller video is enlarged by an integer factor.
        slate: put one frame with the facts in front. The timecode of the file begins one frame earlier then.
        burn_in: write title, frame, timecode and details above and below the picture.

    Raises:
        InputError: not a video, or a path that is not an MP4.
        S2VideoError: ffmpeg fails.
    """
    if path.suffix != ".mp4":
        raise InputError(f"output {path}: expected a name that ends in .mp4, got {path.name!r}")
    source = open_source(video)
    info = source.info
    if not (info.fps > 0 and info.num_frames > 0):
        raise InputError(f"{video}: expected a video with frames and a frame rate, got none; use another file")
    size = _picture_size(info, height)
    layout = _Layout(size, facts, info, slate=slate, burn_in=burn_in)
    frames = info.num_frames + slate
    shift = f"setpts=PTS-STARTPTS+{int(slate)}/({info.fps})/TB,"
    graph = (
        f"[0:v]{shift}{source.filters}scale=flags=bilinear:{_TO_BT709},format=yuv444p,"
        f"scale={size[0]}:{size[1]}:flags={'neighbor' if info.height < size[1] else 'bicubic'},format=yuv420p[picture];"
        f"[1:v]scale={_TO_BT709},format=yuv420p[canvas];"
        f"[canvas][picture]overlay={layout.left}:{layout.top}:eof_action=repeat:enable='gte(n,{int(slate)})',"
        f"setsar=1,{TAG_BT709}[out]"
    )
    inputs = [*source.arguments, *raw_input("rgb24", *layout.size, info.fps)]
    timecode = layout.timecode(-slate)
    stamp = ["-timecode", timecode] if timecode else []
    if facts.sha256 is not None:
        kind = "review copy" if slate or burn_in else "proxy"
        stamp += ["-metadata", f"comment=s2video {kind} of the file with SHA-256 {facts.sha256}"]
    chosen = ["-filter_complex", graph, "-map", "[out]", "-frames:v", str(frames), "-map_metadata", "-1", *stamp]
    with atomic_path(path) as temporary:
        with Ffmpeg([*inputs, *chosen, *h264_mp4(VideoSpec.crf), f"file:{temporary}"]) as ffmpeg:
            for canvas in layout.canvases():
                ffmpeg.send(canvas)
        made = probe_video(temporary)
        if (made.width, made.height, made.num_frames) != (*layout.size, frames):
            raise S2VideoError(
                f"{path}: expected {frames} frames of {layout.size[0]}x{layout.size[1]} px, got {made.num_frames} of "
                f"{made.width}x{made.height} from ffmpeg; check its version"
            )
        sign(temporary)
    return replace(made, path=path)


def _picture_size(info: VideoInfo, height: int) -> tuple[int, int]:
    factor = height // info.height
    wanted = info.height * factor if factor > 1 else height
    return _even(info.width * wanted / info.height), _even(wanted)


def _even(size: float) -> int:
    return max(2, round(size / 2) * 2)


class _Layout:
    """The frames around the picture: [h, w, 3] uint8, black where the picture will be."""

    def __init__(self, picture: tuple[int, int], facts: Facts, info: VideoInfo, *, slate: bool, burn_in: bool) -> None:
        self._facts, self._info, self._slate, self._burn_in = facts, info, slate, burn_in
        self._picture = picture
        self._letters = max(14, picture[1] // 24)
        bar = _even(2 * self._letters) if burn_in else 0
        width = max(picture[0], _LEAST_WIDTH if burn_in or slate else 0)
        self.size = (width, picture[1] + 2 * bar)
        self.left, self.top = (width - picture[0]) // 4 * 2, bar

    def timecode(self, frame: int) -> str | None:
        """Return the timecode of a frame of the video, counted from 0; the slate is -1."""
        if self._facts.timecode is None:
            return None
        return str(Timecode.parse(self._facts.timecode, self._info.fps).later(frame))

    def canvases(self) -> Iterator[NDArray[np.uint8]]:
        if self._slate:
            yield self._slate_frame()
        for frame in range(self._info.num_frames):
            yield self._frame(frame)

    def _frame(self, frame: int) -> NDArray[np.uint8]:
        image = Image.new("RGB", self.size)
        if self._burn_in:
            draw = ImageDraw.Draw(image)
            middle, low = self.top // 2, self.size[1] - self.top // 2
            number = str(self._facts.first_number + frame)
            self._line(draw, middle, self._facts.title, self.timecode(frame) or _seconds(frame, self._info.fps))
            self._line(draw, low, self._facts.details, number)
        return np.asarray(image)

    def _line(self, draw: ImageDraw.ImageDraw, y: int, left: str, right: str) -> None:
        """Write one text at the left and one at the right, which is never shortened."""
        font = load_font(None, self._letters)
        room = int(self.size[0] - 3 * _MARGIN - font.getlength(right))
        text = next(iter(wrapped(left, font, room, most=1)), "")
        draw.text((_MARGIN, y), text, font=font, fill="white", anchor="lm")
        draw.text((self.size[0] - _MARGIN, y), right, font=font, fill="white", anchor="rm")

    def _slate_frame(self) -> NDArray[np.uint8]:
        image = Image.new("RGB", self.size, "#1c1c1c")
        draw = ImageDraw.Draw(image)
        letters = min(self._letters, max(10, self.size[1] // (2 * len(self._facts.slate) + 4)))
        large, font = load_font(None, round(letters * 1.6)), load_font(None, letters)
        left, y = 2 * _MARGIN, 2.2 * letters
        title = next(iter(wrapped(self._facts.title, large, self.size[0] - 2 * left, most=1)), "")
        draw.text((left, y), title, font=large, fill="white", anchor="lm")
        column = left + max(font.getlength(name) for name, _ in self._facts.slate) + 2 * _MARGIN
        y += 2 * letters
        for name, text in self._facts.slate:
            lines = wrapped(text, font, int(self.size[0] - column - left), most=2)
            if y + len(lines) * 1.3 * letters > self.size[1]:
                break
            draw.text((left, y), name, font=font, fill="#9a9a9a", anchor="lm")
            for line in lines:
                draw.text((column, y), line, font=font, fill="white", anchor="lm")
                y += 1.3 * letters
            y += 0.25 * letters
        return np.asarray(image)


def _seconds(frame: int, fps: Fraction) -> str:
    return f"{float(frame / fps):.2f} s"

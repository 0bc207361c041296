"""What is measured of a video without any model: flicker, motion, sharpness, contrast, saturation.

Frames are read one at a time, so memory does not grow with the length. None of the measures is a quality by itself:
`MEASURES` says what each means, and what else moves it.

Dimension letters: H, W rows and columns of a frame; h, w those of a smaller one; B blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..media.video import video_frames
from ..system.files import write_json
from ..system.json_reader import read_json
from ..system.terminal import printable

MEASURES: Mapping[str, str] = {
    "temporal_flickering": "1 − mean absolute difference of successive frames, as VBench defines it; 1 for a still. "
    "Flicker lowers it, and so does motion",
    "motion": "mean displacement of 8x8 blocks from frame to frame, by search, in % of the frame's width",
    "sharpness": "mean absolute Laplacian of the luma, in 1/255. Detail raises it, and so does noise",
    "contrast": "standard deviation of the luma within a frame, in 1/255",
    "saturation": "mean of (largest − smallest of R, G, B), in 1/255",
}
_BROWSER_CODECS = ("h264", "vp8", "vp9", "av1", "dav1d", "aom-av1", "vpx", "vpx-vp9")  # FFmpeg's decoders of them
_VERSION = 1  # of the definitions; measures of another version are measured again
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709
_WIDTH, _BLOCK, _REACH = 128, 8, 6  # px: of frames in which motion is searched, of a block, of the search
_STAY = 0.25  # of 255: what a displacement by one pixel has to gain over none; a flat block has no direction

Frame = NDArray[np.uint8]  # [H, W, 3]
Luma = NDArray[np.float32]  # [H, W], in [0, 255]


def measure_video(path: Path) -> dict[str, float]:
    """Return all of `MEASURES` of a video file; NaN for those that need two frames if there is one.

    Raises:
        InputError: a file that cannot be read, or has no frames.
    """
    return measure_frames(video_frames(path), path)


def measure_frames(frames: Iterable[Frame], path: Path) -> dict[str, float]:
    """Return all of `MEASURES` of frames [H, W, 3], uint8; `path` names them in errors."""
    sums = {name: 0.0 for name in MEASURES}
    count, before, small_before = 0, None, None
    for frame in frames:
        luma: Luma = frame @ _LUMA
        small = _shrunk(luma)
        sums["sharpness"] += _sharpness(luma)
        sums["contrast"] += float(luma.std())
        sums["saturation"] += float(np.ptp(frame, axis=-1).mean())
        if before is not None and small_before is not None:
            if frame.shape != before.shape:
                raise InputError(f"{path}: expected frames of one size, got others; use another file")
            sums["temporal_flickering"] += change(before, frame)
            sums["motion"] += 100 * _displacement(small_before, small) / small.shape[1]
        count, before, small_before = count + 1, frame, small
    if before is None:
        raise InputError(f"{path}: expected a video with frames, got none; use another file")
    pairs = count - 1
    return {
        "temporal_flickering": 1 - sums["temporal_flickering"] / pairs if pairs else math.nan,
        "motion": sums["motion"] / pairs if pairs else math.nan,
        **{name: sums[name] / count for name in ("sharpness", "contrast", "saturation")},
    }


def change(before: Frame, after: Frame) -> float:
    """Return the mean absolute difference of two frames, in [0, 1]."""
    return float(np.abs(after.astype(np.int16) - before).mean()) / 255


class Measured:
    """Measures of files, kept in a JSON file as long as the files have the same size and time of change.

    Args:
        path: the JSON file; one that cannot be used is written again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        with suppress(InputError):
            content = read_json(path)
            if isinstance(content, dict) and content.get("version") == _VERSION:
                videos = content["videos"] if isinstance(content.get("videos"), dict) else {}
                self._known = {name: entry for name, entry in videos.items() if _is_whole(entry)}
        self._is_changed = False

    def of(self, video: Path) -> dict[str, float]:
        """Return the measures of a video. Raises InputError as `measure_video`."""
        key, stamp = printable(video.absolute()), _stamp(video)
        entry = self._known.get(key)
        if entry is not None and entry["stamp"] == stamp:
            return {name: math.nan if value is None else float(value) for name, value in entry["measures"].items()}
        measures = measure_video(video)
        plain = {name: None if math.isnan(value) else value for name, value in measures.items()}
        self._known[key] = {"stamp": stamp, "measures": plain}
        self._is_changed = True
        return measures

    def save(self) -> None:
        """Write the file if anything was measured."""
        if self._is_changed:
            write_json(self._path, {"version": _VERSION, "videos": self._known})


def unplayable_because(video: Path) -> str | None:
    """Return the format of a video that most browsers do not play; None if they do, or if it cannot be read."""
    with suppress(av.FFmpegError), av.open(f"file:{video}", metadata_errors="replace") as container:
        codec = container.streams.video[0].codec_context.name if container.streams.video else ""
        known = codec in _BROWSER_CODECS or codec.removeprefix("lib") in _BROWSER_CODECS
        return None if known and video.suffix in (".mp4", ".webm") else f"{codec} in {video.suffix}"
    return None


def _stamp(video: Path) -> list[int]:
    status = video.stat()
    return [status.st_size, status.st_mtime_ns]


def _is_whole(entry: Any) -> bool:
    """Return whether an entry of the file is one that `Measured` has written."""
    if not (isinstance(entry, dict) and entry.keys() == {"stamp", "measures"} and isinstance(entry["measures"], dict)):
        return False
    stamp, measures = entry["stamp"], entry["measures"]
    return (
        isinstance(stamp, list)
        and all(isinstance(number, int) for number in stamp)
        and measures.keys() == MEASURES.keys()
        and all(
            value is None or (isinstance(value, (int, float)) and math.isfinite(value)) for value in measures.values()
        )
    )


def _sharpness(luma: Luma) -> float:
    if min(luma.shape) < 3:
        return 0.0
    middle = luma[1:-1, 1:-1]
    return float(np.abs(luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle).mean())


def _shrunk(luma: Luma) -> Luma:
    """Return the means of squares of pixels, so that no more than `_WIDTH` columns are left."""
    size = math.ceil(luma.shape[1] / _WIDTH)
    height, width = luma.shape[0] // size, luma.shape[1] // size
    if size == 1 or not height:
        return luma
    small: Luma = luma[: height * size, : width * size].reshape(height, size, width, size).mean(axis=(1, 3))
    return small


def _displacement(before: Luma, after: Luma) -> float:
    """Return the mean displacement of blocks, in pixels of these frames [h, w]; 0 for frames smaller than a block."""
    rows, columns = before.shape[0] // _BLOCK, before.shape[1] // _BLOCK
    if not rows or not columns:
        return 0.0
    padded = np.pad(before, _REACH, mode="edge")
    best = np.full((rows, columns), np.inf, np.float32)
    length = np.zeros((rows, columns), np.float32)
    height, width = rows * _BLOCK, columns * _BLOCK
    for dy in range(-_REACH, _REACH + 1):
        for dx in range(-_REACH, _REACH + 1):
            there = padded[_REACH + dy : _REACH + dy + height, _REACH + dx : _REACH + dx + width]
            difference = np.abs(after[:height, :width] - there)
            cost = difference.reshape(rows, _BLOCK, columns, _BLOCK).mean(axis=(1, 3)) + _STAY * math.hypot(dy, dx)
            is_better = cost < best
            best[is_better], length[is_better] = cost[is_better], math.hypot(dy, dx)
    return float(length.mean())

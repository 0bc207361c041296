"""The frames of a video compared with frames that were made again, in the same format.

Both are read as 8-bit RGB. The same encoder on the same frames writes the same pixels. If the encoder or rounding
differs, single pixels differ a little everywhere, so means over blocks of pixels are compared.

Dimension letters: H, W rows and columns of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ..config.run import RunConfig
from ..errors import InputError, S2VideoError
from ..media.formats import FORMATS, VideoSpec, codec_for
from ..media.video import probe_video, video_frames

TOLERANCE = 24.0  # of 255, in the mean of any block; encoders differ by less, and another picture by more
_BLOCK = 8  # pixels along each side

Picture = NDArray[np.uint8]  # [H, W, 3]


def spec_again(video: Path, config: RunConfig) -> VideoSpec:
    """Return how a video was written, without sound.

    Args:
        video: a file, or a sequence's folder.
        config: its settings; `output.codec` may be auto.
    """
    suffix = _frames_of(video)[0].suffix if video.is_dir() else video.suffix
    name = Path(f"again{suffix}")
    output = config.output.model_copy(update={"codec": codec_for(name, config.output.codec), "audio": None})
    return output.spec(name)


def compare_frames(video: Path, again: Path, *, to_the_bit: bool) -> str:
    """Return in words how the frames of two videos agree.

    Args:
        video: a file, or a sequence's folder.
        again: the same video made again.
        to_the_bit: the frames were the same before they were encoded. If the encoder is the same too, the pixels must
            be.

    Raises:
        S2VideoError: they do not agree: another number or size, other pixels, or a block that differs by more than
            `TOLERANCE`.
    """
    (num_frames, *size), (num_again, *size_again) = _extent(video), _extent(again)
    if num_frames != num_again:
        raise S2VideoError(f"not reproduced: {video} has {num_frames} frames, and its latents decode to {num_again}")
    if size != size_again:
        raise S2VideoError(
            f"not reproduced: {video} has {size[0]}x{size[1]} px, and its latents decode to "
            f"{size_again[0]}x{size_again[1]}"
        )
    must_be_equal = to_the_bit and _encoder(video) == _encoder(again)
    largest, are_equal = 0.0, True
    for number, (one, two) in enumerate(zip(_pictures(video), _pictures(again), strict=True)):
        if np.array_equal(one, two):
            continue
        are_equal = False
        difference = float(np.abs(_means(one) - _means(two)).max())
        largest = max(largest, difference)
        if must_be_equal or difference > TOLERANCE:
            allowed = "equal pixels, because the encoder is the same" if must_be_equal else f"at most {TOLERANCE:g}"
            raise S2VideoError(
                f"not reproduced: frame {number} of {video} is not what its latents decode to: the mean of {_BLOCK}x"
                f"{_BLOCK} pixels differs by up to {difference:.3g} of 255, expected {allowed}"
            )
    if are_equal:
        return "the frames of the file are the same to the bit"
    return f"the frames of the file agree: means of {_BLOCK}x{_BLOCK} pixels differ by up to {largest:.2g} of 255"


def _frames_of(folder: Path) -> list[Path]:
    suffixes = {format.suffix for format in FORMATS.values() if format.is_sequence}
    if not (files := sorted(file for file in folder.iterdir() if file.suffix in suffixes)):
        raise InputError(f"{folder}: expected frames of a sequence, got none; check the path")
    return files


def _extent(video: Path) -> tuple[int, int, int]:
    """Number of frames, width, height."""
    files = _frames_of(video) if video.is_dir() else [video]
    info = probe_video(files[0])
    return len(files) if video.is_dir() else info.num_frames, info.width, info.height


def _pictures(video: Path) -> Iterator[Picture]:
    for file in _frames_of(video) if video.is_dir() else [video]:
        yield from video_frames(file)


def _encoder(video: Path) -> Any:
    """What wrote the file; None for frames, which are stored as they are."""
    if video.is_dir():
        return None
    with av.open(f"file:{video}", metadata_errors="replace") as container:
        return container.metadata.get("encoder"), container.streams.video[0].metadata.get("encoder")


def _means(picture: Picture) -> NDArray[np.float64]:
    """Return the means of blocks of a picture; blocks at the right and the lower edge may be smaller."""
    sums = picture.astype(np.float64)
    for axis in (0, 1):
        starts = np.arange(0, picture.shape[axis], _BLOCK)
        counts = np.diff(np.append(starts, picture.shape[axis]))
        shape = [1, 1, 1]
        shape[axis] = -1
        sums = np.add.reduceat(sums, starts, axis=axis) / counts.reshape(shape)
    return sums

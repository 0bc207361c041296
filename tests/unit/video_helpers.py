"""Pictures to encode, and readers of video files that do not use s2video."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from s2video.media.video import VideoSpec, probe_video

SPEC = VideoSpec(Fraction(16))
LOSSLESS = VideoSpec(Fraction(16), crf=0)
RED, GREEN, BLUE, WHITE, BLACK, GRAY = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (0.5, 0.5, 0.5)


def noise(num_frames: int, height: int = 48, width: int = 80) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_frames):
        yield torch.rand(1, height, width, 3, generator=generator)


def solid(colour: Iterable[float], num_frames: int = 1, height: int = 64, width: int = 64) -> Tensor:
    return torch.tensor(list(colour), dtype=torch.float32).expand(num_frames, height, width, 3)


def bt709(colour: Iterable[float]) -> np.ndarray:
    """Return Y', Cb, Cr codes before rounding, by the matrix of ITU-R BT.709 in its 8-bit limited range."""
    matrix = [[0.2126, 0.7152, 0.0722], [-0.114572, -0.385428, 0.5], [0.5, -0.454153, -0.045847]]
    return np.array([16, 128, 128]) + np.array([219, 224, 224]) * (np.array(matrix) @ np.array(list(colour)))


def stored_planes(path: Path) -> list[np.ndarray]:
    """Return Y', Cb and Cr of the first frame as stored, without conversion."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name in ("yuv420p", "yuv420p10le", "yuv422p10le")
    code = np.dtype("<u2" if frame.format.name.endswith("10le") else "u1")
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, code).reshape(-1, plane.line_size // code.itemsize)
        planes.append(rows[: plane.height, : plane.width].astype(np.int64))
    return planes


def assert_tagged_bt709(path: Path) -> None:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        for source in (container.streams.video[0].codec_context, frame):
            tags = [int(getattr(source, name)) for name in ("color_primaries", "color_trc", "colorspace")]
            assert tags == [1, 1, 1]  # ITU-T H.273: 1 is BT.709 in all three
            assert int(source.color_range) == 1  # limited
    info = probe_video(path)
    assert (info.primaries, info.transfer, info.matrix, info.color_range) == ("bt709", "bt709", "bt709", "tv")

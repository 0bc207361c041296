"""What the tests of studies share: the study that a fixture made, and a writer of small videos."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch

from s2video.media.video import VideoSpec, write_video

PROMPTS = ["a large red circle moving left on a gray background", 'a small blue square <b>"still"</b> & more']


class StudyRun(NamedTuple):
    """A study's file and folder, and what runs the command in this process."""

    file: Path
    folder: Path
    study: Callable[..., int]


def write_clip(path: Path, frames: torch.Tensor) -> Path:
    """Write frames float32 [T, H, W, 3] in [0, 1]."""
    write_video([frames], path, VideoSpec(Fraction(16), crf=0), metadata={})
    return path

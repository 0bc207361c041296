"""Whether the disk has room for what is asked, as far as that can be known before anything is computed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..config.run import RunConfig
from ..errors import InputError
from ..geometry import LatentShape
from ..media.formats import codec_for
from ..media.output_paths import OutputPaths
from ..models.family import CheckpointInfo

# Low estimates, in bits per pixel: quiet pictures take about so much. What is refused would surely not have fitted.
_LEAST_BITS = {"h264": 0.01, "h265": 0.01, "prores": 0.5, "dnxhr": 0.5, "png": 0.5, "exr": 0.5}


def least_space(job: RunConfig, info: CheckpointInfo) -> tuple[int, int]:
    """Return a low estimate of the bytes that a video takes when it is complete, and of those while it is made."""
    sampling = job.sampling
    shape = LatentShape.from_pixels(
        num_frames=sampling.num_frames,
        height=sampling.height,
        width=sampling.width,
        temporal_factor=info.temporal_factor,
        spatial_factor=info.spatial_factor,
    )
    latents = 4 * info.latent_channels * shape.frames * shape.height * shape.width
    pixels = sampling.width * sampling.height * sampling.num_frames
    video = int(pixels * _LEAST_BITS[codec_for(Path(job.output.path), job.output.codec)] / 8)
    kept = video + (latents if job.output.keep_latents else 0)
    return kept, kept + latents


def check_space(jobs: Iterable[tuple[RunConfig, CheckpointInfo]]) -> None:
    """Raise InputError if a file system has less free space than the jobs surely need.

    Videos that are there already are not counted. A quota is not known.
    """
    kept: dict[int, int] = {}
    most: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for job, info in jobs:
        files = OutputPaths.of(job)
        if files.video.exists():
            continue
        folder = _existing(files.video.absolute().parent)
        device = os.stat(folder).st_dev
        space, peak = least_space(job, info)
        kept[device] = kept.get(device, 0) + space
        most[device] = max(most.get(device, 0), peak - space)
        folders[device] = folder
    for device, folder in folders.items():
        needed, free = kept[device] + most[device], shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"output {folder}: expected at least {_megabytes(needed)} free, a low estimate for these videos, got "
                f"{_megabytes(free)}; free some space, or choose another folder"
            )


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"

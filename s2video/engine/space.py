"""Whether the disk has room for what is asked, as far as that can be known before anything is computed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.run import RunConfig
from ..errors import InputError
from ..media.output_paths import OutputPaths
from ..models.family import CheckpointInfo

if TYPE_CHECKING:
    from .decode_latents import Decoding

# Low estimates, in bits per pixel: quiet pictures take about so much. What is refused would surely not have fitted.
_LEAST_BITS = {"h264": 0.01, "h265": 0.01, "prores": 0.5, "dnxhr": 0.5, "png": 0.5, "exr": 0.5}


def least_space(job: RunConfig, info: CheckpointInfo) -> tuple[int, int]:
    """Return a low estimate of the bytes that a video takes when it is complete, and of those while it is made."""
    sampling = job.sampling
    shape = info.latent_shape(num_frames=sampling.num_frames, height=sampling.height, width=sampling.width)
    latents = 4 * info.latent_channels * shape.frames * shape.height * shape.width
    pixels = sampling.width * sampling.height * sampling.num_frames
    video = int(pixels * sum(_LEAST_BITS[spec.codec] for spec in job.output.specs()) / 8)
    kept = video + (latents if job.output.keep_latents else 0)
    return kept, kept + latents


def check_space(jobs: Iterable[tuple[RunConfig, CheckpointInfo]]) -> None:
    """Raise InputError if a file system has less free space than the jobs surely need.

    Videos that are there already are not counted. A quota is not known.
    """
    spaces = ((OutputPaths.of(job).video, least_space(job, info)) for job, info in jobs)
    _check_free((video, *space) for video, space in spaces if not video.exists())


def check_decoding_space(plans: Iterable[Decoding]) -> None:
    """Raise InputError if a file system has less free space than videos of saved latents surely need."""
    _check_free(_decoded(plan) for plan in plans)


def _decoded(plan: Decoding) -> tuple[Path, int, int]:
    info, shape = plan.checkpoint.info, plan.shape
    pixels = info.frames.frames(shape.frames) * shape.height * shape.width * info.spatial_factor**2
    files = zip(plan.videos, plan.config.output.specs(), strict=True)
    video = sum(int(pixels * _LEAST_BITS[spec.codec] / 8) for (file, _), spec in files if not file.video.exists())
    return plan.videos[0][0].video, video, video


def _check_free(needs: Iterable[tuple[Path, int, int]]) -> None:
    """Check videos, each with the bytes that it takes when it is complete, and while it is made."""
    kept: dict[int, int] = {}
    most: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for video, space, peak in needs:
        folder = _existing(video.absolute().parent)
        device = os.stat(folder).st_dev
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

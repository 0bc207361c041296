"""Every job of a batch held against its checkpoint and its output, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ..errors import InputError
from ..media.checks import check_output, check_spec
from ..media.formats import VideoSpec
from ..models.checkpoint import check_checkpoint, find_checkpoint, read_checkpoint
from ..models.family import CheckpointInfo
from ..models.images import read_images
from ..models.limits import check_images, check_request
from .run_file import BatchJob


def find_problems(jobs: Sequence[BatchJob], *, world_size: int, images: bool) -> Iterator[str]:
    """What stands in the way of jobs, a sentence each, as far as that can be known before the models are loaded.

    Args:
        images: read them too. Before a run they are not: one that is missing may still come, and if not, its job fails
            alone.
    """

    @cache
    def checkpoint(path: str, revision: str | None) -> CheckpointInfo | str:
        try:
            folder = find_checkpoint(path, revision)
            check_checkpoint(folder)
            return read_checkpoint(folder)
        except InputError as error:
            return str(error)

    @cache
    def spec_problem(spec: VideoSpec, width: int, height: int) -> str | None:
        try:
            check_spec(spec, width, height)
        except InputError as error:
            return str(error)
        return None

    for job in jobs:
        found = checkpoint(job.config.model.path, job.config.model.revision)
        if isinstance(found, str):
            yield f"{job.where}: {found}"
            continue
        try:
            check_request(job.config, found, world_size=world_size)
            check_images(found, image=job.config.image is not None, last_image=job.config.last_image is not None)
            output, sampling = Path(job.config.output.path), job.config.sampling
            check_output(output)
            if images:
                read_images(*job.config.image_paths)
            if (problem := spec_problem(job.config.output.spec(output), sampling.width, sampling.height)) is not None:
                yield f"{job.where}: {problem}"
        except InputError as error:
            yield f"{job.where}: {error}"

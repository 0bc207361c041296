"""A job's files, made by an engine: the video, its sidecar X.json and, if asked for, X.latents.safetensors.

Every rank calls these functions together; files are written by the main rank.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..media.video_queue import write_video_meanwhile
from ..models.images import read_images
from ..parallel.collectives import gather_objects
from ..records.checkpoint import Checkpoints
from ..records.sidecar import container_metadata, is_sidecar_of, job_facts, make_sidecar, run_facts, save_latents
from ..system.files import write_json
from .engine import Engine
from .job import Job


@dataclass(frozen=True)
class Denoised:
    """A job halfway: its latents, and what its sidecar will say of them."""

    latents: Tensor
    facts: dict[str, Any]
    checkpoints: Checkpoints
    seconds: float


def make_video(engine: Engine, job: Job) -> Path | None:
    """Make the job's files.

    The latents are saved before decoding starts, and stay if it fails.

    Returns:
        The path of the video's file, or of a sequence's folder, on the main rank, None on the others.
    """
    denoised = denoise(engine, job)
    if denoised is None:
        return job.place if engine.mesh.is_main else None
    return finish(engine, job, denoised)


def denoise(engine: Engine, job: Job) -> Denoised | None:
    """The job's latents; None where `job.resume` finds its files made already."""
    images = read_images(job.image, job.last_image)
    facts = job_facts(
        engine.config.for_output(job.output),
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        images=[] if images is None else images.records(job.image, job.last_image),
        seed=job.seed,
        masks=engine.mask_schedule([job.seed]),
    )
    engine.mesh.watch.meet()  # the main rank loads more than the others, and decodes the video before this one
    if gather_objects(job.resume and _is_made(engine, job, facts), engine.mesh.world)[0]:
        return None
    start = time.monotonic()
    checkpoints = Checkpoints(
        job.checkpoint_path,
        engine.mesh,
        engine.denoising_weights,
        every_seconds=engine.config.checkpoint.every_seconds,
        resume=job.resume,
    )
    latents = engine.sample(
        [job.prompt], [job.seed], negative_prompt=job.negative_prompt, images=images, checkpoints=checkpoints
    )
    return Denoised(latents, facts, checkpoints, time.monotonic() - start)


def finish(engine: Engine, job: Job, denoised: Denoised, *, alone: bool = False) -> Path | None:
    """Save the latents, decode them, and write the job's files. Returns as `make_video` does.

    Args:
        alone: on the main rank only, in any thread; see `Engine.decode`.
    """
    mesh, config, facts = engine.mesh, engine.config, denoised.facts
    if not alone:
        mesh.watch.report("decoding")
    if not mesh.is_main:
        list(engine.decode(denoised.latents))  # nothing: this rank helps
        return None
    timings = {"load_seconds": engine.load_seconds, "denoise_seconds": denoised.seconds}
    save_latents(denoised.latents, job.latents_path, facts)
    start = time.monotonic()
    spec = config.output.spec(job.output)
    frames = engine.decode(denoised.latents, alone=alone)
    write_video_meanwhile(frames, job.output, spec, metadata=container_metadata(facts, spec.codec))
    timings["decode_seconds"] = time.monotonic() - start
    facts |= run_facts(
        denoised.latents,
        mesh,
        weights=engine.weight_digests(),
        timings=timings,
        resumed_after_step=denoised.checkpoints.first_step or None,
    )
    write_json(job.sidecar_path, make_sidecar(facts, job.place).as_json())
    if not job.keep_latents:
        job.latents_path.unlink()
    denoised.checkpoints.remove()
    return job.place


def _is_made(engine: Engine, job: Job, facts: dict[str, Any]) -> bool:
    """Whether the job's files are there, whole, and of this very job; the main rank knows."""
    files = [job.place, job.sidecar_path, *([job.latents_path] if job.keep_latents else [])]
    if not engine.mesh.is_main or not all(file.exists() for file in files):
        return False
    return is_sidecar_of(job.sidecar_path, facts | {"weights": engine.weight_digests()})

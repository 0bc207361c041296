"""A job's files, made by an engine: X.mp4, its sidecar X.json and, if asked for, X.latents.safetensors.

Every rank calls these functions together; files are written by the main rank.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import Checkpoints
from .files import write_json
from .job import Job
from .models.images import Images, read_images
from .parallel.collectives import gather_objects
from .pipeline import Engine
from .sidecar import container_metadata, is_sidecar_of, job_facts, save_latents, versions
from .video import VideoSpec
from .video_queue import write_video_meanwhile


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
        The video's path on the main rank, None on the others.
    """
    denoised = denoise(engine, job)
    if denoised is None:
        return job.output if engine.mesh.is_main else None
    return finish(engine, job, denoised)


def denoise(engine: Engine, job: Job) -> Denoised | None:
    """The job's latents; None where `job.resume` finds its files made already."""
    images = read_images(job.image, job.last_image)
    facts = job_facts(
        engine.config,
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        images=_image_facts(job, images),
        seed=job.seed,
        mask_seed=engine.mask_seed([job.seed]),
        num_blocks=engine.num_blocks,
        num_steps=engine.config.sampling.num_inference_steps,
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


def finish(engine: Engine, job: Job, denoised: Denoised) -> Path | None:
    """Save the latents, decode them, and write the job's files. Returns as `make_video` does."""
    mesh, config, facts = engine.mesh, engine.config, denoised.facts
    mesh.watch.report("decoding")
    if not mesh.is_main:
        list(engine.decode(denoised.latents))  # nothing: this rank helps
        return None
    timings = {"load_seconds": engine.load_seconds, "denoise_seconds": denoised.seconds}
    save_latents(denoised.latents, job.latents_path, facts)
    start = time.monotonic()
    spec = VideoSpec(config.output.fps, config.output.crf)
    write_video_meanwhile(engine.decode(denoised.latents), job.output, spec, metadata=container_metadata(facts))
    timings["decode_seconds"] = time.monotonic() - start
    write_json(
        job.sidecar_path,
        {
            **facts,
            "weights": engine.weight_digests(),
            "resumed_after_step": denoised.checkpoints.first_step or None,
            "mesh": mesh.describe(),
            "versions": versions(),
            "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        },
    )
    if not job.keep_latents:
        job.latents_path.unlink()
    denoised.checkpoints.remove()
    return job.output


def _image_facts(job: Job, images: Images | None) -> list[dict[str, str]]:
    if images is None:
        return []
    paths = [str(path) for path in (job.image, job.last_image) if path is not None]
    return [{"path": path, "digest": digest} for path, digest in zip(paths, images.digests(), strict=True)]


def _is_made(engine: Engine, job: Job, facts: dict[str, Any]) -> bool:
    """Whether the job's files are there, whole, and of this very job; the main rank knows."""
    files = [job.output, job.sidecar_path, *([job.latents_path] if job.keep_latents else [])]
    if not engine.mesh.is_main or not all(file.is_file() for file in files):
        return False
    return is_sidecar_of(job.sidecar_path, facts | {"weights": engine.weight_digests()})

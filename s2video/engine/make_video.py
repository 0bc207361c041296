"""A job's video and its files, made by an engine: the video, its sidecar X.json and, on request, its latents.

Every rank calls these functions together; the main rank writes the files.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.run import RunConfig
from ..media.output_paths import OutputPaths
from ..media.video_queue import write_video_meanwhile
from ..models.images import Images, read_images
from ..models.prompts import cut_warning
from ..parallel.collectives import gather_objects
from ..records.resume import ResumePoint
from ..records.sidecar import container_metadata, job_facts, run_facts, save_latents, sidecar_beside, why_not_made
from ..system.terminal import say
from .engine import Engine, OnStep


@dataclass(frozen=True)
class Denoised:
    """A job halfway: its latents, and what is known about them.

    Attributes:
        engine: the models, under the job's config.
        latents: float32 [1, C, T, H, W].
        facts: what the sidecar will say about the job.
        seconds: that denoising took.
        resume_point: None if the job writes no files.
    """

    engine: Engine
    latents: Tensor
    facts: dict[str, Any]
    seconds: float
    resume_point: ResumePoint | None = None

    def all_facts(self, decode_seconds: float) -> dict[str, Any]:
        """Return everything that the sidecar says, except about the video's file. Main rank only."""
        timings = {"load_seconds": self.engine.load_seconds, "denoise_seconds": self.seconds}
        return self.facts | run_facts(
            self.latents,
            self.engine.mesh,
            weights=self.engine.weight_digests(),
            attention=self.engine.attention_kernel,
            timings=timings | {"decode_seconds": decode_seconds},
            resumed_after_step=(self.resume_point.first_step or None) if self.resume_point else None,
        )


def make_video(engine: Engine, job: RunConfig, *, resume: bool = False) -> Path | None:
    """Make a job's video and its other files, under `job.output.path`.

    The latents are saved before decoding starts, and stay if it fails.

    Args:
        engine: the models of `job.model`.
        resume: keep a video that is there already, unchanged, and of this job, and continue one that was interrupted.

    Returns:
        The path of the video's file, or of a sequence's folder, on the main rank, None on the others.
    """
    denoised = denoise(engine, job, resume=resume)
    if denoised is None:
        return OutputPaths.of(job).video if engine.mesh.is_main else None
    return finish(denoised)


def denoise(engine: Engine, job: RunConfig, *, resume: bool = False, on_step: OnStep | None = None) -> Denoised | None:
    """Denoise a job that writes files; returns None if `resume` finds them made already."""
    engine, mesh, files = engine.with_config(job), engine.mesh, OutputPaths.of(job)
    images = read_images(*job.image_paths)
    facts = _facts(engine, job.for_output(files.output), images)
    mesh.watch.meet()  # the main rank loads more than the others, and decodes the video before this one
    if gather_objects(resume and _is_made(engine, files, facts), mesh.world)[0]:
        return None
    resume_point = ResumePoint(
        files.resume_point,
        mesh,
        engine.denoising_weights,
        every_seconds=job.checkpoint.every_seconds,
        resume=resume,
    )
    return _denoised(engine, images, facts, resume_point, on_step)


def denoise_in_memory(engine: Engine, job: RunConfig, on_step: OnStep | None = None) -> Denoised:
    """Denoise a job of which no file is written."""
    engine = engine.with_config(job)
    images = read_images(*job.image_paths)
    return _denoised(engine, images, _facts(engine, job, images), None, on_step)


def finish(denoised: Denoised, *, alone: bool = False) -> Path | None:
    """Save the latents, decode them, and write the job's files. Returns as `make_video` does.

    Args:
        alone: on the main rank only, in any thread; see `Engine.decode`.
    """
    engine, facts = denoised.engine, denoised.facts
    job, files = engine.config, OutputPaths.of(engine.config)
    if not alone:
        engine.mesh.watch.report("decoding")
    if not engine.mesh.is_main:
        list(engine.decode(denoised.latents))  # yields nothing: this rank helps
        return None
    save_latents(denoised.latents, files.latents, facts)
    start = time.monotonic()
    spec = job.output.spec(files.output)
    frames = engine.decode(denoised.latents, alone=alone)
    beside = sidecar_beside(files.output, lambda: denoised.all_facts(time.monotonic() - start))
    write_video_meanwhile(frames, files.output, spec, metadata=container_metadata(facts, spec.codec), beside=beside)
    if not job.output.keep_latents:
        files.latents.unlink()
    if denoised.resume_point is not None:
        denoised.resume_point.remove()
    return files.video


def _facts(engine: Engine, job: RunConfig, images: Images | None) -> dict[str, Any]:
    records = [] if images is None else images.records(*job.image_paths)
    masks = engine.mask_schedule([job.sampling.seed])
    return job_facts(
        job,
        images=records,
        masks=masks,
        cut_prompts=engine.cut_prompts(),
        model_files=engine.checkpoint.settings_digests(),
    )


def _denoised(
    engine: Engine,
    images: Images | None,
    facts: dict[str, Any],
    resume_point: ResumePoint | None,
    on_step: OnStep | None,
) -> Denoised:
    job, start = engine.config, time.monotonic()
    assert job.prompt is not None, "a job has a prompt"
    for cut in facts["cut_prompts"]:
        say(f"warning: {cut_warning(cut)}")
    latents = engine.sample(
        [job.prompt],
        [job.sampling.seed],
        images=images,
        resume_point=resume_point,
        on_step=on_step,
    )
    return Denoised(engine, latents, facts, time.monotonic() - start, resume_point)


def _is_made(engine: Engine, files: OutputPaths, facts: dict[str, Any]) -> bool:
    """Whether the job's files are there, unchanged, and of this very job; the main rank knows, and says why not."""
    if not engine.mesh.is_main or not (files.video.exists() or files.sidecar.exists()):
        return False
    wanted = facts | {"weights": engine.weight_digests()}
    reason = why_not_made(files.sidecar, wanted, with_latents=engine.config.output.keep_latents)
    if reason is not None:
        say(f"{files.video}: made again: {reason}")
    return reason is None

"""A job's video and its files, made by an engine: the video, its sidecar X.json and, on request, its latents.

Every rank calls these functions together; the main rank writes the files.
"""

import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.run import RunConfig
from ..errors import InputError
from ..media.output_paths import OutputPaths, VideoFile
from ..media.sound import wav_of
from ..media.video_queue import write_videos_meanwhile
from ..models.control import Control, Pictures, read_pictures
from ..models.images import Images
from ..parallel.collectives import gather_objects
from ..parallel.mesh import Mesh
from ..records.identity import audio_digest
from ..records.replacing import latents_were_kept, was_interrupted
from ..records.resume import ResumePoint
from ..records.sidecar import job_facts, run_facts, save_latents, why_not_made
from ..records.targets import targets_of
from ..system.claims import Claims
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
        claim: of the main rank on the job's files; `finish` gives it back.
    """

    engine: Engine
    latents: Tensor
    facts: dict[str, Any]
    seconds: float
    resume_point: ResumePoint | None = None
    claim: Claims | None = None

    def all_facts(self, decode_seconds: float | None) -> dict[str, Any]:
        """Return everything that the sidecar says, except about the video's file. Main rank only.

        Args:
            decode_seconds: None before decoding.
        """
        timings = {"load_seconds": self.engine.load_seconds, "denoise_seconds": self.seconds}
        timings |= {} if decode_seconds is None else {"decode_seconds": decode_seconds}
        return self.facts | run_facts(
            self.latents,
            self.engine.mesh,
            weights=self.engine.digests.weights(),
            attention=self.engine.attention_kernel,
            s2_scales=[(step, scales[0]) for step, scales in self.engine.s2_scales],
            timings=timings,
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


def denoise(
    engine: Engine,
    job: RunConfig,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    afresh_if_damaged: bool = False,
    patience: float = 0.0,
) -> Denoised | None:
    """Denoise a job that writes files; returns None if `resume` finds them made already.

    Args:
        afresh_if_damaged: see `ResumePoint`.
        patience: seconds to wait for another process that makes this video, if it is about to end.
    """
    engine, mesh, files = engine.with_config(job), engine.mesh, OutputPaths.of(job)
    images = read_pictures(job)
    facts = _facts(engine, job.for_output(files.output), images)
    mesh.watch.meet()  # the main rank loads more than the others, and decodes the video before this one
    with ExitStack() as until_finish:
        claim = _claimed(files, mesh, until_finish, patience)
        if gather_objects(resume and _is_made(engine, files, facts), mesh.world)[0]:
            if mesh.is_main:
                _remove_unneeded(files)
            return None
        resume_point = ResumePoint(
            files.resume_point,
            mesh,
            engine.digests.of_denoising,
            every_seconds=job.checkpoint.every_seconds,
            resume=resume,
            afresh_if_damaged=afresh_if_damaged,
        )
        denoised = _denoised(engine, images, facts, resume_point, on_step)
        until_finish.pop_all()
    return replace(denoised, claim=claim)


def denoise_in_memory(engine: Engine, job: RunConfig, on_step: OnStep | None = None) -> Denoised:
    """Denoise a job of which no file is written."""
    engine = engine.with_config(job)
    images = read_pictures(job)
    return _denoised(engine, images, _facts(engine, job, images), None, on_step)


def finish(denoised: Denoised, *, alone: bool = False) -> Path | None:
    """Save the latents, decode them, and write the job's files. Returns as `make_video` does.

    Args:
        alone: on the main rank only, in any thread; see `Engine.decode`.
    """
    engine, files = denoised.engine, OutputPaths.of(denoised.engine.config)
    if not alone:
        engine.mesh.watch.report("decoding")
    if not engine.mesh.is_main:
        list(engine.decode(denoised.latents))  # yields nothing: this rank helps
        return None
    with denoised.claim or nullcontext():
        return _write(denoised, files, alone=alone)


def _write(denoised: Denoised, files: OutputPaths, *, alone: bool) -> Path:
    """Write the files of a job, on the main rank."""
    job, claim, facts = denoised.engine.config, denoised.claim, denoised.facts
    keeps_latents = job.output.keep_latents
    if not keeps_latents and latents_were_kept(files.latents):
        say(f"{files.latents} was kept by an earlier run, so the latents of this run are kept there, too")
        keeps_latents = facts["config"]["output"]["keep_latents"] = True
    _check_unchanged(claim, (files.latents,), "choose another output")
    known = denoised.all_facts(None) | {"timings": {}}  # without times, the same latents make the same file
    save_latents(denoised.latents, files.latents, known)
    start = time.monotonic()

    def all_facts(file: VideoFile) -> dict[str, Any]:
        remedy = f"s2video decode {files.latents} --output, with another name, makes this video"
        _check_unchanged(claim, (file.video, file.sidecar), remedy)  # immediately before they are replaced
        if audio_digest(job) != facts["audio_sha256"]:
            raise InputError(f"output.audio: {job.output.audio} changed while the video was made; {remedy}")
        return denoised.all_facts(time.monotonic() - start)

    sound = denoised.engine.sound(denoised.latents) if job.output.audio is None else None
    with wav_of(sound) as wav:
        frames = denoised.engine.decode(denoised.latents, alone=alone)
        # the sidecar says which codec "auto" was
        write_videos_meanwhile(frames, targets_of(job.for_output(files.output), facts, all_facts, sound=wav))
    if not keeps_latents:
        files.latents.unlink()
    if denoised.resume_point is not None:
        denoised.resume_point.remove()
    return files.video


def _claimed(files: OutputPaths, mesh: Mesh, until: ExitStack, patience: float) -> Claims | None:
    """Claim the files on the main rank, until `until` is closed. Raises InputError on all ranks."""
    claim, problem = None, None
    if mesh.is_main:
        try:
            claim = until.enter_context(Claims(files.locks, patience=patience))
        except InputError as error:
            problem = str(error)
    problem = gather_objects(problem, mesh.world)[0]
    if problem is not None:
        raise InputError(problem)
    return claim


def _remove_unneeded(files: OutputPaths) -> None:
    """Remove what a run has left that was killed when the video was complete, and before it removed these itself."""
    files.resume_point.unlink(missing_ok=True)
    if was_interrupted(files):
        files.latents.unlink(missing_ok=True)


def _check_unchanged(claim: Claims | None, paths: Iterable[Path], remedy: str) -> None:
    if claim is not None:
        for path in paths:
            claim.check_unchanged(path, remedy)


def _facts(engine: Engine, job: RunConfig, images: Pictures | None) -> dict[str, Any]:
    masks = engine.mask_schedule([job.sampling.seed])
    makes_sound = engine.checkpoint.info.sound is not None and job.output.audio is None
    facts = job_facts(
        job,
        images=images.records(*job.image_paths) if isinstance(images, Images) else (),
        masks=masks,
        passes=None if masks.reuse.is_exact else engine.passes(masks),
        cut_prompts=engine.cut_prompts(),
        model_files=engine.checkpoint.settings_digests(),
        conversions=engine.checkpoint.conversions,
        loras=[lora.record() for lora in engine.loras],
    )
    control = images.records(job.control) if isinstance(images, Control) else []
    return facts | {"control": control, "sound": "model" if makes_sound else None}


def _denoised(
    engine: Engine,
    images: Pictures | None,
    facts: dict[str, Any],
    resume_point: ResumePoint | None,
    on_step: OnStep | None,
) -> Denoised:
    job, start = engine.config, time.monotonic()
    assert job.prompt is not None, "a job has a prompt"
    if engine.mesh.is_main and (warning := job.guidance.reuse_warning()) is not None:
        _warn_once(warning)
    latents = engine.sample(
        [job.prompt],
        [job.sampling.seed],
        images=images,
        resume_point=resume_point,
        on_step=on_step,
    )
    return Denoised(engine, latents, facts, time.monotonic() - start, resume_point)


@cache
def _warn_once(warning: str) -> None:
    """Say it for the first video of a process, and not for each of a batch."""
    say(f"warning: {warning}")


def _is_made(engine: Engine, files: OutputPaths, facts: dict[str, Any]) -> bool:
    """Whether the job's files are there, unchanged, and of this very job; the main rank knows, and says why not."""
    if not engine.mesh.is_main or not (files.video.exists() or files.sidecar.exists()):
        return False
    wanted = facts | {"weights": engine.digests.weights()}
    with_latents = engine.config.output.keep_latents
    reason = why_not_made(files.sidecar, wanted, with_latents=with_latents, copies=files.copies)
    if reason is not None:
        say(f"{files.video}: made again: {reason}")
    return reason is None

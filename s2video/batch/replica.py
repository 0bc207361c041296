"""One replica of a batch: it draws jobs from the store until none waits, with the models loaded once.

All ranks run this together; the main rank draws, and the others follow. A job that fails is recorded, and the batch
continues. If the main rank decodes without other ranks (one rank, or `parallel.decode: serial`), it decodes and encodes
a job in a thread while the next one is denoised. If other ranks help, all collectives must come in one order: then a
video is finished before the next one is begun, and only its encoding overlaps its decoding.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch

from ..config.run import RunConfig
from ..config.sections import ParallelConfig
from ..engine.engine import Engine, OnStep
from ..engine.make_video import Denoised, denoise, finish
from ..errors import FollowUpError, S2VideoError, StoppedError, is_out_of_memory, memory_reported, out_of_memory
from ..media.output_paths import OutputPaths
from ..models.checkpoint import OpenModel, open_checkpoint
from ..parallel.collectives import any_rank, gather_objects
from ..parallel.mesh import Mesh, init_mesh
from ..parallel.ring import named_backend
from ..parallel.symptoms import shows_a_lost_rank
from ..planning.fits import advice_for
from ..planning.plan import resolve_parallel
from ..system import ranks
from ..system.claims import PATIENCE
from ..system.files import sha256
from ..system.progress import Style
from ..system.roster import own_roster
from ..system.shutdown import Termination
from ..system.terminal import say, show_path
from .engines import Engines, free_memory
from .gpu_room import GpuRoom
from .heartbeat import Heartbeat
from .interfaces import JobSource
from .records import Record
from .run_file import Overlap

_IDLE = 0.2  # seconds between two looks for new jobs of a replica that stays
_TOGETHER = 30.0  # seconds in which all ranks must leave a job that failed on one of them

T = TypeVar("T")


class _CrowdedError(Exception):
    """Memory ran out while two jobs, or several models, shared the GPU."""


@dataclass(frozen=True)
class _Halfway:
    """A job whose latents are made."""

    record: Record
    denoised: Denoised

    @property
    def engine(self) -> Engine:
        return self.denoised.engine


def run_replica(
    store: JobSource,
    config: RunConfig,
    owner: str,
    *,
    overlap: Overlap,
    progress: Style = "auto",
    stays: bool = False,
    loaded: int = 1,
) -> None:
    """Join the other ranks of a replica, and make jobs until none waits. Every rank runs this.

    Args:
        config: of any job, the same on all ranks; it says how they join.
        owner: the replica's name, which no other has or had.
        stays: wait for new jobs when none is left, with the models loaded; then only a signal ends it.
        loaded: number of models that stay loaded, at least 1.

    Raises:
        StoppedError, SystemExit: it was asked to stop; its jobs wait again.
        S2VideoError: its ranks cannot continue; its job is released when it is gone.
    """
    open_model = cache(open_checkpoint)
    if config.parallel.degrees == "auto":
        model = open_model(*config.model.source)
        config = resolve_parallel(config, model, ranks.world_size())
    parallel, device = config.parallel, config.model.device
    with Termination().handled() as termination, init_mesh(parallel, device) as mesh, memory_reported():
        options = _Options(overlap, progress, termination, stays, loaded)
        if not mesh.is_main:
            _Replica(store, owner, mesh, config.parallel, open_model, options).make_jobs()
            return
        with store.presence(owner), Heartbeat(store, owner) as heartbeat:
            try:
                _Replica(store, owner, mesh, config.parallel, open_model, options, heartbeat).make_jobs()
            except (StoppedError, SystemExit, KeyboardInterrupt):
                heartbeat.held.clear()
                if not own_roster().lost():  # otherwise the job may have killed a rank, which counts as an attempt
                    store.give_back(owner)
                raise


@dataclass(frozen=True)
class _Options:
    """How a replica works: whether decoding overlaps denoising, how progress is shown, how SIGTERM is handled, whether
    it waits for new jobs when none is left, and how many models stay loaded."""

    overlap: Overlap
    progress: Style
    termination: Termination
    stays: bool = False
    loaded: int = 1


class _Replica:
    """One rank's part in a replica."""

    def __init__(
        self,
        store: JobSource,
        owner: str,
        mesh: Mesh,
        parallel: ParallelConfig,
        open_model: OpenModel,
        options: _Options,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._store = store
        self._owner = owner
        self._mesh = mesh
        self._open_model = open_model
        self._options = options
        self._heartbeat = heartbeat
        self._room = GpuRoom(mesh.device)
        self._engines = Engines(options.loaded, mesh, parallel, self._load, self._room.forget)

    def make_jobs(self) -> None:
        """Draw and make jobs until none waits; where the replica stays, until it is stopped."""
        self._make_all()
        while self._options.stays:
            time.sleep(_IDLE)
            self._make_all()

    def _make_all(self) -> None:
        halfway: _Halfway | None = None
        with ThreadPoolExecutor(1, "decoder", initializer=self._room.enter_thread) as thread:
            while (drawn := self._draw(self._engines.groups)) is not None:
                record, job, resume = drawn
                if halfway is not None and self._overlaps(halfway, job):
                    halfway = self._denoise_beside(halfway, thread, record, job, resume)
                else:
                    if halfway is not None:
                        self._finish(halfway)
                    halfway = None  # its models may have to make room for others
                    halfway = self._denoise(record, job, resume)
                # one that may have killed a replica takes no other job with it
                if halfway is not None and (record.attempts > 1 or not halfway.engine.can_decode_alone):
                    self._finish(halfway)
                    halfway = None
            if halfway is not None:
                self._finish(halfway)

    def _draw(self, models: Sequence[str]) -> tuple[Record, RunConfig, bool] | None:
        """The next job, and whether it resumes: the main rank draws, and looks for files of an earlier start."""
        self._mesh.watch.meet()
        drawn: tuple[Record, RunConfig, bool] | None = None
        if self._mesh.is_main and (record := self._store.draw(self._owner, models)) is not None:
            if self._heartbeat is not None:
                self._heartbeat.held.add(record.name)
            job = RunConfig.model_validate_json(record.config)
            files = OutputPaths.of(job)
            drawn = record, job, files.sidecar.exists() or files.resume_point.exists()
        found: tuple[Record, RunConfig, bool] | None = gather_objects(drawn, self._mesh.world)[0]
        return found

    def _overlaps(self, halfway: _Halfway, job: RunConfig) -> bool:
        """Whether a job is denoised while another one is decoded; the main rank decides."""
        if not self._serves(halfway.engine, self._resolved(job)) or job.image is not None:
            return False  # the VAE that decodes is needed for an image, too
        if halfway.engine.checkpoint.info.control_layers:
            return False  # and for control
        if (named_backend(job.model.attention_backend) or "").startswith("_native_"):
            return False  # diffusers allows only this kernel while it runs, in the whole process, the VAE included
        overlaps = self._options.overlap == "always"
        if self._options.overlap == "auto":
            overlaps = self._room.holds(decoding=halfway.engine.config, denoising=job)
        return bool(gather_objects(overlaps, self._mesh.world)[0])

    def _denoise_beside(
        self, earlier: _Halfway, thread: ThreadPoolExecutor, record: Record, job: RunConfig, resume: bool
    ) -> _Halfway | None:
        """Return as `_denoise`, while a thread of the main rank decodes an earlier job.

        If the GPU has not enough memory for both, the one that failed is made again, alone.
        """
        behind: Future[bool] | None = None
        if self._mesh.is_main:
            behind = thread.submit(self._finish_alone, earlier, self._room.mark())
        halfway, is_crowded = None, False
        try:
            halfway = self._denoise(record, job, resume, is_alone=False)
        except _CrowdedError:
            is_crowded = True
        is_finished = behind.result() if behind is not None else True
        if not gather_objects(is_finished, self._mesh.world)[0]:
            free_memory(self._mesh.device)
            self._finish(earlier)
        return self._denoise(record, job, resume) if is_crowded else halfway

    def _denoise(self, record: Record, job: RunConfig, resume: bool, *, is_alone: bool = True) -> _Halfway | None:
        """The job's latents; None if that failed, or if nothing is left to do.

        Raises:
            _CrowdedError: see `_together`.
        """

        def act() -> _Halfway | None:
            resolved = self._resolved(job)
            engine = self._engine_for(resolved, record)
            with self._room.measured("denoising", job) if is_alone else nullcontext():
                denoised = denoise(
                    engine,
                    resolved,
                    resume=resume,
                    afresh_if_damaged=True,
                    on_step=self._step_of(record),
                    patience=PATIENCE if record.attempts > 1 else 0.0,
                )
            if denoised is not None:
                return _Halfway(record, denoised)
            self._record_files(record, resolved)
            return None

        return self._with_room(record, act, is_alone=is_alone)

    def _finish(self, halfway: _Halfway) -> None:
        def act() -> None:
            with self._room.measured("decoding", halfway.engine.config):
                finish(halfway.denoised)
            self._record_files(halfway.record, halfway.engine.config)

        self._with_room(halfway.record, act)

    def _finish_alone(self, halfway: _Halfway, latents_done: torch.cuda.Event | None) -> bool:
        """On the main rank, in a thread, while another job is denoised; returns False if that takes too much memory."""
        try:
            self._room.wait(latents_done)
            finish(halfway.denoised, alone=True)
            self._record_files(halfway.record, halfway.engine.config)
        except Exception as error:
            if is_out_of_memory(error):
                return False
            self._record_failure(halfway.record, error)
        return True

    def _resolved(self, job: RunConfig) -> RunConfig:
        if job.parallel.degrees == "given":
            return job
        model = self._open_model(*job.model.source)
        return resolve_parallel(job, model, self._mesh.world.size)

    def _engine_for(self, job: RunConfig, record: Record) -> Engine:
        """The models of a job: those that are loaded, if they are the right ones."""
        return self._engines.of(job, record.models)

    def _load(self, job: RunConfig, mesh: Mesh) -> Engine:
        return Engine(
            job,
            mesh,
            checkpoint=self._open_model(*job.model.source),
            progress=self._options.progress,
            termination=self._options.termination,
        )

    def _serves(self, engine: Engine, job: RunConfig) -> bool:
        return (engine.config.model, engine.config.parallel) == (job.model, job.parallel)

    def _with_room(self, record: Record, act: Callable[[], T], *, is_alone: bool = True) -> T | None:
        """Return as `_together`. If memory runs out while other models are loaded, they go, and it is done again."""
        if not (is_alone and self._engines.have_others(record.models)):
            return self._together(record, act, is_alone=is_alone)
        try:
            return self._together(record, act, is_alone=False)
        except _CrowdedError:
            self._engines.keep_only(record.models)
        return self._together(record, act)

    def _together(self, record: Record, act: Callable[[], T], *, is_alone: bool = True) -> T | None:
        """Run on all ranks a part of one job; returns None if it failed on any of them, which is recorded.

        Args:
            is_alone: nothing else is on the devices.

        Raises:
            _CrowdedError: on all ranks, if memory ran out, which is no fault of a job that was not alone.
            Exception: the job's, if the other ranks do not leave it, or the GPU cannot be used any more: the replica
                has to end.
        """
        result: T | None = None
        failed = crowded = False
        try:
            result = act()
        except StoppedError:
            if any_rank(self._options.termination.requested, self._mesh.world, self._mesh.device):
                raise
            self._forget(record)  # a client has deleted the job
            self._mesh.watch.meet()
            return None
        except Exception as error:
            if shows_a_lost_rank(error):
                raise
            crowded = is_out_of_memory(error) and not is_alone
            if not crowded:
                self._record_failure(record, error)
            if not self._mesh.watch.meet(within=_TOGETHER) or _breaks_gpu(error) or self._loses_step(error):
                raise
            failed = True
        else:
            self._mesh.watch.meet()
        if not any_rank(failed, self._mesh.world, self._mesh.device):
            return result
        free_memory(self._mesh.device)
        if not is_alone and not any_rank(failed and not crowded, self._mesh.world, self._mesh.device):
            raise _CrowdedError
        return None

    def _loses_step(self, error: Exception) -> bool:
        """Whether the ranks may have queued different numbers of collectives when the error was raised.

        gloo blocks, so all ranks are at the same collective. With NCCL, hosts run up to a step ahead of their GPUs: two
        ranks that run out of memory have queued different work, and the next collective would pair with an old one.
        This project's own errors and those of files are raised where all ranks have queued the same.
        """
        return self._mesh.backend == "nccl" and not isinstance(error, S2VideoError | OSError)

    def _record_files(self, record: Record, job: RunConfig) -> None:
        if not self._mesh.is_main:
            return
        files = OutputPaths.of(job)
        written = [path for file in files.videos for path in (*_files_in(file.video), file.sidecar)]
        digests = {path.relative_to(self._store.folder).as_posix(): sha256(path) for path in written}
        self._let_go(record)
        if self._store.finish(record.name, self._owner, digests):
            for file in files.videos:
                show_path(file.video)

    def _record_failure(self, record: Record, error: Exception) -> None:
        """On any rank; the first failure is recorded."""
        trace = "" if isinstance(error, S2VideoError) else "".join(traceback.format_exception(error))
        self._let_go(record)
        if isinstance(error, FollowUpError):  # the other rank records the reason
            return
        line = _one_line(error, partial(self._advice, record))
        if self._store.fail(record.name, self._owner, line, rank=self._mesh.world.rank, traceback=trace):
            say(f"failed: {record.name}: {line}")

    def _advice(self, record: Record) -> str:
        """Return the end of an out-of-memory message of this job."""
        job = RunConfig.model_validate_json(record.config)
        return advice_for(job, self._mesh.world.size, self._mesh.device)

    def _step_of(self, record: Record) -> OnStep | None:
        """Return what reports the job's steps to the store, and stops it when the store says so; main rank only."""
        if not self._mesh.is_main:
            return None
        return partial(self._store.step_done, record.name)

    def _forget(self, record: Record) -> None:
        if self._mesh.is_main:
            self._let_go(record)
            self._store.forget(record.name)

    def _let_go(self, record: Record) -> None:
        if self._heartbeat is not None:
            self._heartbeat.held.discard(record.name)


def _files_in(video: Path) -> list[Path]:
    """Return the file of a video, or the frames of a sequence."""
    return sorted(video.iterdir()) if video.is_dir() else [video]


def _one_line(error: Exception, advise: Callable[[], str]) -> str:
    """The error, as one line, which ends with advice if memory ran out."""
    if is_out_of_memory(error):
        return out_of_memory(error, advise())
    text = " ".join(str(error).split())
    return text if isinstance(error, S2VideoError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _breaks_gpu(error: Exception) -> bool:
    """Whether this process's GPU cannot be used after the error."""
    return not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)

"""One replica of a batch: it draws jobs from the store until none waits, with the models loaded once.

All ranks run this together; the main rank draws, and the others follow. A job that fails is recorded, and the batch
goes on. Decoding and encoding of a job overlap the next one's denoising, in a thread of the main rank, where it decodes
without other ranks (one rank, or `parallel.decode: serial`). Where they help, their collectives must come in one order:
then a video is finished before the next is begun, and only its encoding runs beside its decoding.
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch

from ..config.run import RunConfig
from ..config.sections import ParallelConfig
from ..engine.engine import Engine
from ..engine.job import Job
from ..engine.make_video import Denoised, denoise, finish
from ..errors import S2VideoError, StoppedError, out_of_memory
from ..parallel.collectives import any_rank, gather_objects
from ..parallel.mesh import Mesh, build_mesh, init_mesh
from ..parallel.watch import shows_a_lost_rank
from ..planning.plan import resolve_parallel
from ..system import ranks
from ..system.files import sha256
from ..system.progress import Style
from ..system.shutdown import Termination, stop_at_end_of_stdin
from .gpu_room import GpuRoom
from .heartbeat import Heartbeat
from .locks import held_lock
from .plan import video_job
from .store import Record, Store

Overlap = Literal["auto", "always", "never"]
_TOGETHER = 30.0  # seconds for all ranks to come out of a job that failed on one of them

T = TypeVar("T")


@dataclass(frozen=True)
class _Halfway:
    """A job whose latents are there, and the engine that made them."""

    record: Record
    engine: Engine
    job: Job
    denoised: Denoised


def run_replica(
    store: Store,
    config: RunConfig,
    owner: str,
    *,
    overlap: Overlap,
    progress: Style = "auto",
    follows_stdin: bool = False,
) -> None:
    """What every rank of a replica runs: join the others, and make jobs until none waits.

    Args:
        config: of any job, the same on all ranks; how they join.
        owner: the replica's name, which no other has or had.
        follows_stdin: stop when standard input ends, which is when the process at its other end is gone.

    Raises:
        StoppedError, SystemExit: it was told to stop; its jobs wait again.
        S2VideoError: its ranks cannot go on; what it was making is taken back when it is gone.
    """
    config = resolve_parallel(config, ranks.world_size())
    is_main = ranks.is_main_rank()
    if follows_stdin and is_main:
        threading.Thread(target=stop_at_end_of_stdin, daemon=True).start()
    with Termination().handled() as termination, init_mesh(config.parallel, config.model.device) as mesh:
        if not mesh.is_main:
            _Replica(store, owner, mesh, config.parallel, overlap, progress, termination).make_jobs()
            return
        with held_lock(store.owner_path(owner)), Heartbeat(store, owner) as heartbeat:
            try:
                _Replica(store, owner, mesh, config.parallel, overlap, progress, termination, heartbeat).make_jobs()
            except (StoppedError, SystemExit, KeyboardInterrupt):
                heartbeat.held.clear()
                store.give_back(owner)
                raise
        store.owner_path(owner).unlink(missing_ok=True)


class _Replica:
    """One rank's part in a replica."""

    def __init__(
        self,
        store: Store,
        owner: str,
        mesh: Mesh,
        parallel: ParallelConfig,
        overlap: Overlap,
        progress: Style,
        termination: Termination,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._store = store
        self._owner = owner
        self._mesh = mesh
        # by the settings that they are laid out by; groups of ranks are dear, and never given back
        self._meshes = {parallel.model_dump_json(): mesh}
        self._overlap = overlap
        self._progress: Style = progress
        self._termination = termination
        self._heartbeat = heartbeat
        self._room = GpuRoom(mesh.device)
        self._engine: Engine | None = None

    def make_jobs(self) -> None:
        halfway: _Halfway | None = None
        models: str | None = None
        with ThreadPoolExecutor(1, "decoder", initializer=self._room.enter_thread) as thread:
            while (drawn := self._draw(models)) is not None:
                record, job = drawn
                models = record.models
                config = RunConfig.model_validate_json(record.config)
                behind: Future[None] | None = None
                if halfway is not None and self._overlaps(halfway, config):
                    if self._mesh.is_main:
                        behind = thread.submit(self._finish_alone, halfway)
                elif halfway is not None:
                    self._finish(halfway)
                halfway = None  # its models may have to make room for others
                halfway = self._denoise(record, job, config, is_alone=behind is None)
                if behind is not None:
                    behind.result()
                # one that may have killed a replica takes no other job with it
                if halfway is not None and (record.attempts > 1 or not halfway.engine.can_decode_alone):
                    self._finish(halfway)
                    halfway = None
            if halfway is not None:
                self._finish(halfway)

    def _draw(self, models: str | None) -> tuple[Record, Job] | None:
        """The main rank draws, and looks at what there is of the job already."""
        self._mesh.watch.meet()
        drawn: tuple[Record, Job] | None = None
        if self._mesh.is_main and (record := self._store.draw(self._owner, models)) is not None:
            if self._heartbeat is not None:
                self._heartbeat.held.add(record.name)
            job = video_job(RunConfig.model_validate_json(record.config))
            resume = job.sidecar_path.exists() or job.checkpoint_path.exists()
            drawn = record, replace(job, resume=resume)
        found: tuple[Record, Job] | None = gather_objects(drawn, self._mesh.world)[0]
        return found

    def _overlaps(self, halfway: _Halfway, config: RunConfig) -> bool:
        """The main rank decides."""
        if not self._serves(halfway.engine, config) or config.image is not None:
            return False  # the VAE that decodes is wanted for an image, too
        overlaps = self._overlap == "always"
        if self._overlap == "auto":
            overlaps = self._room.holds(decoding=halfway.engine.config, denoising=config)
        return bool(gather_objects(overlaps, self._mesh.world)[0])

    def _denoise(self, record: Record, job: Job, config: RunConfig, *, is_alone: bool) -> _Halfway | None:
        """None where that failed, or where nothing is left to do."""

        def act() -> _Halfway | None:
            engine = self._engine_for(config)
            if is_alone:
                with self._room.measured("denoising", config):
                    denoised = denoise(engine, job)
            else:
                denoised = denoise(engine, job)
            if denoised is not None:
                return _Halfway(record, engine, job, denoised)
            self._record_files(record, job)
            return None

        return self._together(record, act)

    def _finish(self, halfway: _Halfway) -> None:
        def act() -> None:
            with self._room.measured("decoding", halfway.engine.config):
                finish(halfway.engine, halfway.job, halfway.denoised)
            self._record_files(halfway.record, halfway.job)

        self._together(halfway.record, act)

    def _finish_alone(self, halfway: _Halfway) -> None:
        """On the main rank, in a thread beside the denoising of another job."""
        try:
            finish(halfway.engine, halfway.job, halfway.denoised, alone=True)
            self._record_files(halfway.record, halfway.job)
        except Exception as error:
            self._record_failure(halfway.record, error)

    def _engine_for(self, config: RunConfig) -> Engine:
        """The models that are loaded, where they are the right ones, under this config."""
        config = resolve_parallel(config, self._mesh.world.size)
        if self._engine is not None and self._serves(self._engine, config):
            return self._engine.with_config(config)
        self._engine = None
        self._free_memory()
        key = config.parallel.model_dump_json()
        if self._mesh.backend is None:
            self._meshes[key] = self._mesh  # one process lays nothing out
        elif key not in self._meshes:
            self._meshes[key] = replace(build_mesh(config.parallel, self._mesh.device), watch=self._mesh.watch)
        self._engine = Engine(config, self._meshes[key], progress=self._progress, termination=self._termination)
        return self._engine

    def _serves(self, engine: Engine, config: RunConfig) -> bool:
        config = resolve_parallel(config, self._mesh.world.size)
        return (engine.config.model, engine.config.parallel) == (config.model, config.parallel)

    def _together(self, record: Record, act: Callable[[], T]) -> T | None:
        """What all ranks do for one job; None where it failed on any of them, which is recorded.

        Raises:
            Exception: the job's, where the other ranks do not come out of it, or the GPU cannot be used any more: the
                replica has to end.
        """
        result: T | None = None
        failed = False
        try:
            result = act()
        except StoppedError:
            raise
        except Exception as error:
            if shows_a_lost_rank(error):
                raise
            self._record_failure(record, error)
            if not self._mesh.watch.meet(within=_TOGETHER) or _breaks_gpu(error):
                raise
            failed = True
        else:
            self._mesh.watch.meet()
        if any_rank(failed, self._mesh.world, self._mesh.device):
            self._free_memory()
            return None
        return result

    def _record_files(self, record: Record, job: Job) -> None:
        if not self._mesh.is_main:
            return
        frames = sorted(job.place.iterdir()) if job.place.is_dir() else [job.place]
        files = [*frames, job.sidecar_path]
        digests = {path.relative_to(self._store.folder).as_posix(): sha256(path) for path in files}
        self._let_go(record)
        if self._store.finish(record.name, self._owner, digests):
            print(job.place, flush=True)

    def _record_failure(self, record: Record, error: Exception) -> None:
        """On any rank; the first to speak is heard."""
        trace = "" if isinstance(error, S2VideoError) else "".join(traceback.format_exception(error))
        self._let_go(record)
        if self._store.fail(record.name, self._owner, _told(error), rank=self._mesh.world.rank, traceback=trace):
            print(f"s2video: failed: {record.name}: {_told(error)}", file=sys.stderr, flush=True)

    def _let_go(self, record: Record) -> None:
        if self._heartbeat is not None:
            self._heartbeat.held.discard(record.name)

    def _free_memory(self) -> None:
        gc.collect()
        if self._mesh.device.type == "cuda":
            torch.cuda.empty_cache()


def _told(error: Exception) -> str:
    """The error as one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(error)
    text = " ".join(str(error).split())
    return text if isinstance(error, S2VideoError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _breaks_gpu(error: Exception) -> bool:
    """Whether nothing can be computed on this process's GPU after the error."""
    return not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)

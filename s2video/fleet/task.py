"""One task of a job bundle: it makes a video, or continues it, and tells the farm how far it is."""

from __future__ import annotations

import time

from ..config.run import RunConfig
from ..engine.engine import Engine
from ..engine.make_video import denoise, finish
from ..engine.statement import jobs_statement
from ..errors import memory_reported
from ..media.output_paths import OutputPaths
from ..models.checkpoint import open_checkpoint
from ..parallel.agreement import require_agreement
from ..parallel.mesh import init_mesh
from ..planning.fits import advice_for
from ..planning.plan import resolve_parallel
from ..system import ranks
from ..system.claims import PATIENCE
from ..system.shutdown import Termination
from ..system.terminal import show_path
from .farm import tell

_EVERY = 1.0  # seconds between two lines about progress
_DENOISED = 95  # per cent; the rest is decoding and encoding


def run_task(job: RunConfig) -> None:
    """Make a video and its files; keep it if it is there, unchanged and of this job. Every rank runs this.

    Raises:
        StoppedError, SystemExit: it was asked to stop; run again, it continues.
        S2VideoError: the video cannot be made.
    """
    checkpoint = open_checkpoint(*job.model.source)
    job = resolve_parallel(job, checkpoint, ranks.world_size())
    with (
        Termination().handled() as termination,
        init_mesh(job.parallel, job.model.device) as mesh,
        memory_reported(lambda: advice_for(job, mesh.world.size, mesh.device)),
    ):
        require_agreement(jobs_statement([job], resume=True), mesh.world)
        if mesh.is_main:
            tell("status", "loading the model")
        engine = Engine(job, mesh, checkpoint=checkpoint, progress="none", termination=termination)
        denoised = denoise(
            engine,
            job,
            resume=True,
            afresh_if_damaged=True,
            on_step=_Steps() if mesh.is_main else None,
            patience=PATIENCE,
        )
        if denoised is not None:
            if mesh.is_main:
                tell("status", "decoding")
            finish(denoised)
        if mesh.is_main:
            tell("progress", 100)
            tell("status", "done" if denoised is not None else "was made before")
            show_path(OutputPaths.of(job).video)


class _Steps:
    """Prints how far denoising is, about once a second."""

    def __init__(self) -> None:
        self._printed_at = 0.0

    def __call__(self, done: int, total: int) -> bool:
        now = time.monotonic()
        if done == total or now - self._printed_at >= _EVERY:
            self._printed_at = now
            tell("progress", round(_DENOISED * done / total, 1))
            tell("status", f"denoising step {done} of {total}")
        return True

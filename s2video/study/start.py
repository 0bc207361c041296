"""A study before it starts: every clip checked, and how many videos there are to make and how long they take.

Writes nothing to the study's folder.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from ..batch.checks import find_problems
from ..batch.fates import TO_MAKE, Again, outlook
from ..batch.plan import predict_seconds, spoken
from ..batch.register import judge, refuse
from ..batch.run_file import RESERVED, Batch, load_batch
from ..batch.store import Store
from ..errors import InputError
from ..models.checkpoint import open_checkpoint
from ..records.sidecar_model import read_sidecar
from ..review.html import counted
from ..system.terminal import say
from .design import MANIFEST, Design, write_run_file


def checked_batch(design: Design, world_size: int) -> Batch:
    """Return the study's batch, checked as before a start.

    Raises:
        InputError: a folder of another batch, or clips that cannot be made, which are said before.
    """
    if any(design.folder.glob(f"{RESERVED}*sqlite")) and not (design.folder / MANIFEST).is_file():
        raise InputError(
            f"{design.folder}: expected a folder for this study, got that of a batch; choose another folder"
        )
    with tempfile.TemporaryDirectory(prefix="s2video-") as folder:
        batch = load_batch(write_run_file(design, Path(folder)))
    found = find_problems(batch.jobs, cache(open_checkpoint), world_size=world_size, images=True)
    problems = [_without_folder(problem, folder) for problem in dict.fromkeys([*batch.problems, *found])]
    if problems:
        for problem in problems[:20]:
            say(" ".join(problem.split()))
        raise InputError(f"{len(problems)} problems with the clips of this study, see above; nothing was started")
    return batch


def _without_folder(problem: str, folder: str) -> str:
    return problem.replace(f"{folder}{os.sep}", "")


def describe(design: Design, batch: Batch, wanted: Again, *, replicas: int, world_size: int) -> str:
    """Return how many videos the study has, how many are missing, and how long these take.

    Args:
        batch: from `checked_batch`.
        world_size: ranks of each replica.

    Raises:
        InputError: a video that may not be replaced.
    """
    open_model = cache(open_checkpoint)
    store = Store(batch.folder)
    judged = judge(batch.jobs, store, open_model, wanted, all_keys=False)
    refuse([each.fate for each in judged])
    states = {record.name: record.state for record in store.records()} if store.path.exists() else {}
    missing = [each.job for each in judged if outlook(each.fate, states.get(each.job.name)) in TO_MAKE]
    measured = _measured_seconds(batch)
    predicted = predict_seconds(missing, open_model, world_size=world_size)
    seconds = [measured.get(job.name.partition("/")[0], guess) for job, guess in zip(missing, predicted, strict=True)]
    known = [each for each in seconds if each is not None]
    total = spoken(sum(known) / replicas) if len(known) == len(seconds) else "unknown time"
    source = (
        "by the clips that are made" if measured else "by the cost model, for denoising only; on a CPU a rough guess"
    )
    settings = f"{len(design.settings)} settings ({', '.join(design.settings)})"
    takes = f" x {design.seeds} seeds" if design.seeds > 1 else ""
    time = f": {total}, {source}" if missing else ""
    return (
        f"{counted(len(design.prompts), 'prompt')}{takes} x {settings}: {design.num_videos} videos in {design.folder}\n"
        f"{len(missing)} to make on {replicas} x {world_size} ranks{time}"
    )


def _measured_seconds(batch: Batch) -> dict[str, float]:
    """Return the mean seconds of denoising and decoding of a clip, by setting, as far as any are made."""
    seconds: dict[str, list[float]] = {}
    for job in batch.jobs:
        path = batch.folder / Path(job.name).with_suffix(".json")
        if path.is_file():
            timings = read_sidecar(path).timings
            spent = timings.get("denoise_seconds", 0.0) + timings.get("decode_seconds", 0.0)
            seconds.setdefault(job.name.partition("/")[0], []).append(spent)
    return {name: sum(values) / len(values) for name, values in seconds.items()}

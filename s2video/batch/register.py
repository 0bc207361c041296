"""Jobs -> the store: which of them are new or changed, and which are made already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from ..config.sections import ModelSource
from ..errors import InputError
from ..media.output_paths import OutputPaths
from ..models.checkpoint import OpenModel
from ..planning.cards import CARDS
from ..records.identity import job_key
from ..records.replacing import Replaced, latents_were_kept
from ..system.files import remove_leftovers
from ..system.terminal import say
from .fates import Again, Fate, fate_of, shortened
from .plan import in_order, models_of, predict_seconds
from .records import Entry, Record
from .run_file import Batch, BatchJob
from .store import Store
from .takes import staying


class Registered(NamedTuple):
    """What a start of a batch replaces, and the changed jobs whose videos it leaves as they are."""

    replaced: list[Replaced]
    kept: list[str]


class Judged(NamedTuple):
    """A job with its key and its fate."""

    job: BatchJob
    key: str
    fate: Fate


def judge(
    jobs: Sequence[BatchJob], store: Store, open_model: OpenModel, wanted: Again, *, all_keys: bool = True
) -> list[Judged]:
    """Return what becomes of each job, from the state, if there is one, and the files. Writes nothing.

    Args:
        all_keys: False: a new job has no key, which spares reading the weights if all are new.

    Raises:
        InputError: a LoRA that cannot be found.
    """
    has_state = store.path.exists()
    known = {record.name: record for record in store.records()} if has_state else {}
    digests, replaceable = (store.digests(), store.replaceable()) if has_state else ({}, set())

    @cache
    def model_digests(source: ModelSource) -> Mapping[str, str]:
        return open_model(*source).digests()

    judged = []
    for job in jobs:
        old = known.get(job.name)
        key = job_key(job.config, model_digests(job.config.model.source)) if all_keys or old is not None else ""
        fate = fate_of(
            job,
            key,
            old,
            folder=store.folder,
            digests=digests.get(job.name, {}),
            may_replace=job.name in replaceable,
            wanted=wanted,
        )
        judged.append(Judged(job, key, fate))
    return judged


def register(
    jobs: Sequence[BatchJob],
    store: Store,
    open_model: OpenModel,
    *,
    world_size: int,
    wanted: Again | None = None,
    batch: Batch | None = None,
) -> Registered:
    """Put the jobs into the store; those wait that are new or changed, or whose files are missing.

    Only for the process that holds the store's lock. Work of earlier starts is kept: a job that they did not finish
    continues from its resume point.

    Args:
        batch: what the jobs are a part of, which says what else stays in the store; None: nothing else.

    Raises:
        InputError: a video that may not be replaced; the store then knows what it knew before.
    """
    wanted = wanted or Again()
    store.begin()
    ordered = in_order(jobs)
    judged = judge(ordered, store, open_model, wanted)
    refuse([each.fate for each in judged])
    known = {record.name: record for record in store.records()}
    # only their ratios count, so any card will do
    works = predict_seconds(ordered, open_model, world_size=world_size, card=CARDS["H100"])
    entries, again, registered = [], set(), Registered([], [])
    damaged = []
    for (job, key, fate), work in zip(judged, works, strict=True):
        entries.append(_entry(job, key, work, known.get(job.name) if fate.is_kept else None))
        if fate.again is not None:
            _discard(OutputPaths.of(job.config))
            store.log("made again", job=job.name, reason=fate.again)
            if fate.is_damaged:
                damaged.append(f"{job.name} is made again: {fate.again}")
            again.add(job.name)
        if fate.replaced is not None:
            registered.replaced.append(fate.replaced)
        if fate.is_kept:
            registered.kept.append(job.name)
    for sentence in shortened(damaged):
        say(sentence)
    replaceable = frozenset(job.name for job, _, fate in judged if fate.replaced is not None)
    names = {entry.name for entry in entries}
    others = [(name, record.take or "") for name, record in known.items() if name not in names]
    store.put(entries, frozenset(again), replaceable, _staying(others, batch))
    if all(record.state != "running" for record in store.records()):  # else a replica of an older start still works
        remove_leftovers([store.checksums_path, *(path for job in jobs for path in OutputPaths.of(job.config).all)])
    return registered


def _staying(others: Sequence[tuple[str, str]], batch: Batch | None) -> frozenset[str]:
    if batch is None:
        return frozenset()
    made = [job.take for job in batch.jobs if job.take is not None]
    return frozenset(staying(others, made, batch.shots, partial=batch.is_partial))


def refuse(fates: Sequence[Fate]) -> None:
    """Raise InputError after printing why, if a video may not be replaced."""
    if problems := [fate.problem for fate in fates if fate.problem is not None]:
        for problem in shortened(problems):
            say(problem)
        raise InputError(f"{len(problems)} videos may not be replaced, see above; nothing was started")


def _entry(job: BatchJob, key: str, work: float | None, kept: Record | None) -> Entry:
    """What the store says about a job; about one whose changed settings do not count, what it said before."""
    return Entry(
        name=job.name,
        place=job.where,
        models=models_of(job.config),
        config=job.config.model_dump_json() if kept is None else kept.config,
        key=key if kept is None else kept.key,
        work=work,
        take=None if job.take is None else job.take.as_text(),
    )


def _discard(files: OutputPaths) -> None:
    """Remove what would let a job be skipped or resumed; the video stays until another replaces it."""
    for path in (files.sidecar, files.resume_point):
        path.unlink(missing_ok=True)
    if not latents_were_kept(files.latents):
        files.latents.unlink(missing_ok=True)

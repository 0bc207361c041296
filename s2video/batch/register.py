"""Jobs -> the store: which are new or changed, and which are already made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ..engine.job import Job
from ..models.checkpoint import find_checkpoint
from ..planning.cards import CARDS
from ..records.identity import checkpoint_digests, job_key
from ..system.files import remove_leftovers, sha256
from .plan import in_order, models_of, predict_seconds, video_job
from .run_file import BatchJob
from .store import Entry, Record, Store


def register(
    jobs: Sequence[BatchJob],
    store: Store,
    *,
    world_size: int,
    force: bool = False,
    retry_failed: bool = False,
) -> None:
    """Put the jobs into the store; those wait that are new or changed, or whose files are not what they were.

    Only for the process that holds the store's lock. What earlier starts left is kept: a job that they did not end goes
    on from its checkpoint.
    """
    store.begin()
    known = {record.name: record for record in store.records()}
    digests = store.digests()

    @cache
    def checkpoint(path: str, revision: str | None) -> Mapping[str, str]:
        return checkpoint_digests(find_checkpoint(path, revision))

    entries, again = [], set()
    ordered = in_order(jobs)
    # of no interest in seconds, so any card will do
    works = predict_seconds(ordered, world_size=world_size, card=CARDS["H100"])
    for job, work in zip(ordered, works, strict=True):
        key = job_key(job.config, checkpoint(job.config.model.path, job.config.model.revision))
        entries.append(
            Entry(
                name=job.name,
                place=job.where,
                models=models_of(job.config),
                config=job.config.model_dump_json(),
                key=key,
                work=work,
            )
        )
        old = known.get(job.name)
        if old is None:
            continue
        if (reason := _obsolete(old, key, store.folder, digests.get(job.name, {}), force=force)) is not None:
            _discard(video_job(job.config))
            store.log("made again", job=job.name, reason=reason)
            again.add(job.name)
        elif old.state == "failed" and retry_failed:
            again.add(job.name)
    store.put(entries, frozenset(again))
    if all(record.state != "running" for record in store.records()):  # else one of an older start is still at work
        remove_leftovers([store.checksums_path, *(path for job in jobs for path in _files(video_job(job.config)))])


def _obsolete(old: Record, key: str, folder: Path, digests: Mapping[str, str], *, force: bool) -> str | None:
    """Why what there is of a job cannot be kept; None if it can."""
    if force:
        return "--force"
    if old.key != key:
        return "something that determines its pixels has changed"
    if old.state == "done":
        wrong = [path for path, digest in digests.items() if file_digest(folder / path) != digest]
        if wrong or not digests:
            return f"{', '.join(wrong) or 'its file'} is missing or has changed"
    return None


def _discard(job: Job) -> None:
    """Take away what would let a job be skipped or taken up; the video stays until another takes its place."""
    for path in (job.sidecar_path, job.latents_path, job.checkpoint_path):
        path.unlink(missing_ok=True)


def _files(job: Job) -> tuple[Path, ...]:
    """All that is ever written for a job."""
    return job.place, job.sidecar_path, job.latents_path, job.checkpoint_path


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    try:
        return sha256(path)
    except OSError:
        return None

"""Jobs -> the store: which of them are new or changed, and which are made already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ..config.sections import ModelSource
from ..media.output_paths import OutputPaths
from ..models.checkpoint import OpenModel
from ..planning.cards import CARDS
from ..records.identity import job_key
from ..system.files import remove_leftovers, sha256
from .plan import in_order, models_of, predict_seconds
from .run_file import BatchJob
from .store import Entry, Record, Store


def register(
    jobs: Sequence[BatchJob],
    store: Store,
    open_model: OpenModel,
    *,
    world_size: int,
    force: bool = False,
    retry_failed: bool = False,
) -> None:
    """Put the jobs into the store; those wait that are new or changed, or whose files have changed.

    Only for the process that holds the store's lock. Work of earlier starts is kept: a job that they did not finish
    continues from its resume point.
    """
    store.begin()
    known = {record.name: record for record in store.records()}
    digests = store.digests()

    @cache
    def model_digests(source: ModelSource) -> Mapping[str, str]:
        return open_model(*source).digests()

    entries, again = [], set()
    ordered = in_order(jobs)
    # only their ratios count, so any card will do
    works = predict_seconds(ordered, open_model, world_size=world_size, card=CARDS["H100"])
    for job, work in zip(ordered, works, strict=True):
        key = job_key(job.config, model_digests(job.config.model.source))
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
            _discard(OutputPaths.of(job.config))
            store.log("made again", job=job.name, reason=reason)
            again.add(job.name)
        elif old.state == "failed" and retry_failed:
            again.add(job.name)
    store.put(entries, frozenset(again))
    if all(record.state != "running" for record in store.records()):  # else a replica of an older start still works
        remove_leftovers([store.checksums_path, *(path for job in jobs for path in OutputPaths.of(job.config).all)])


def _obsolete(old: Record, key: str, folder: Path, digests: Mapping[str, str], *, force: bool) -> str | None:
    """Why the files of a job cannot be kept; None if they can."""
    if force:
        return "--force"
    if old.key != key:
        return "something that determines its pixels has changed"
    if old.state == "done":
        wrong = [path for path, digest in digests.items() if file_digest(folder / path) != digest]
        if wrong or not digests:
            return f"{', '.join(wrong) or 'its file'} is missing or has changed"
    return None


def _discard(files: OutputPaths) -> None:
    """Remove what would let a job be skipped or resumed; the video stays until another replaces it."""
    for path in (files.sidecar, files.latents, files.resume_point):
        path.unlink(missing_ok=True)


def file_digest(path: Path) -> str | None:
    """Return SHA-256 of a file; None if there is none."""
    try:
        return sha256(path)
    except OSError:
        return None

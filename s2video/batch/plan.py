"""A batch before its first job starts: every job held against its checkpoint, what each will take, what is to be done.

Imports neither torch nor diffusers, save where a setting, or the name of a GPU, can only be asked there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from ..config import RunConfig
from ..errors import InputError
from ..files import remove_leftovers, sha256
from ..job import Job
from ..media.formats import VideoSpec
from ..models.family import CheckpointInfo
from ..models.images import read_images
from ..models.loading import check_checkpoint, find_checkpoint
from ..planning.cards import CARDS, Card
from ..planning.forecast import Degrees
from ..planning.plan import make_plan, this_card
from ..records.identity import checkpoint_digests, job_key
from ..requests import check_images, check_output, check_request, check_spec, read_checkpoint
from .config import BatchJob
from .store import Entry, Record, Store


def video_job(config: RunConfig) -> Job:
    """What a batch job's config asks the engine for."""
    assert config.prompt is not None, "a batch job has a prompt"
    return Job(
        config.prompt,
        config.negative_prompt,
        config.sampling.seed,
        Path(config.output.path),
        config.output.keep_latents,
        image=config.image_paths[0],
        last_image=config.image_paths[1],
    )


def models_of(config: RunConfig) -> str:
    """Equal for jobs that one engine can make."""
    return json.dumps([config.model.model_dump(mode="json"), config.parallel.model_dump(mode="json")])


def in_order(jobs: Sequence[BatchJob]) -> list[BatchJob]:
    """The order in which jobs are best made: as they came, but those with the same models together, and in these those
    with the same texts, so that models are loaded, and texts encoded, once."""
    groups: dict[str, int] = {}
    texts: dict[tuple[str | None, str], int] = {}
    ranks = [
        (
            groups.setdefault(models_of(job.config), len(groups)),
            texts.setdefault((job.config.prompt, job.config.negative_prompt), len(texts)),
        )
        for job in jobs
    ]
    return [job for _, job in sorted(zip(ranks, jobs, strict=True), key=lambda pair: pair[0])]


def find_problems(jobs: Sequence[BatchJob], *, world_size: int, images: bool) -> Iterator[str]:
    """What stands in the way of jobs, a sentence each, as far as that can be known before the models are loaded.

    Args:
        images: read them too. Before a run they are not: one that is missing may still come, and if not, its job fails
            alone.
    """

    @cache
    def checkpoint(path: str, revision: str | None) -> CheckpointInfo | str:
        try:
            folder = find_checkpoint(path, revision)
            check_checkpoint(folder)
            return read_checkpoint(folder)
        except InputError as error:
            return str(error)

    @cache
    def spec_problem(spec: VideoSpec, width: int, height: int) -> str | None:
        try:
            check_spec(spec, width, height)
        except InputError as error:
            return str(error)
        return None

    for job in jobs:
        found = checkpoint(job.config.model.path, job.config.model.revision)
        if isinstance(found, str):
            yield f"{job.where}: {found}"
            continue
        try:
            check_request(job.config, found, world_size=world_size)
            check_images(found, image=job.config.image is not None, last_image=job.config.last_image is not None)
            output, sampling = Path(job.config.output.path), job.config.sampling
            check_output(output)
            if images:
                read_images(*job.config.image_paths)
            if (problem := spec_problem(job.config.output.spec(output), sampling.width, sampling.height)) is not None:
                yield f"{job.where}: {problem}"
        except InputError as error:
            yield f"{job.where}: {error}"


def predict_seconds(jobs: Sequence[BatchJob], *, world_size: int, card: Card | None = None) -> list[float | None]:
    """How long each job's denoising takes, by the cost model; None: it cannot say.

    Args:
        card: None: this machine's. To know a GPU's name takes an import of torch.
    """

    @cache
    def predicted(dumped: str) -> float | None:
        config = RunConfig.model_validate_json(dumped)
        try:
            folder = find_checkpoint(config.model.path, config.model.revision)
            model = config.model.model_copy(update={"path": str(folder)})
            target = this_card(config.model.device) if card is None else card
            plan = make_plan(config.model_copy(update={"model": model}), world_size, target)
        except InputError:
            return None
        degrees = _degrees(config, world_size)
        chosen = next((c for c in plan.candidates if c.degrees == degrees), plan.best)
        return chosen.forecast.seconds * config.sampling.num_inference_steps

    return [predicted(_without_texts(job.config).model_dump_json()) for job in jobs]


def _without_texts(config: RunConfig) -> RunConfig:
    """With nothing in it that leaves the cost as it is."""
    sampling = config.sampling.model_copy(update={"seed": 0})
    return RunConfig(model=config.model, sampling=sampling, guidance=config.guidance, parallel=config.parallel)


def _degrees(config: RunConfig, world_size: int) -> Degrees | None:
    """Of the mesh that the config makes of so many ranks; None: the plan chooses."""
    parallel = config.parallel
    if parallel.degrees == "auto":
        return None
    rest = world_size // parallel.branch
    ring = parallel.ring or (rest // parallel.ulysses if parallel.ulysses else 1)
    return Degrees(ring, parallel.ulysses or rest // ring, parallel.branch)


def describe(jobs: Sequence[BatchJob], seconds: Sequence[float | None], *, replicas: int, world_size: int) -> str:
    """What `--dry-run` prints: a line a job, and what all of them come to."""
    lines = []
    for number, (job, predicted) in enumerate(zip(jobs, seconds, strict=True), 1):
        sampling = job.config.sampling
        size = f"{sampling.width}x{sampling.height}x{sampling.num_frames}, {sampling.num_inference_steps} steps"
        prompt = " ".join((job.config.prompt or "").split())
        shown = prompt if len(prompt) <= 60 else f"{prompt[:59]}…"
        lines.append(
            f"{number:4d}  {job.config.output.path}  {size}, seed {sampling.seed}, {spoken(predicted)}  {shown}"
        )
    known = [s for s in seconds if s is not None]
    cards = ", ".join(sorted({this_card(job.config.model.device).name for job in jobs}))
    total = spoken(sum(known) / replicas if known else None)
    lines.append(
        f"{len(jobs)} videos, {total} in all on {replicas} x {world_size} x {cards}: predicted by the cost model for "
        "denoising alone, not measured" + (", and for the CPU no more than a rough guess" if "cpu" in cards else "")
    )
    return "\n".join(lines)


def spoken(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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

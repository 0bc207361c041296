"""A batch before its first job starts: every job held against its checkpoint, what each will take, what is to be done.

Imports neither torch nor diffusers, save where a setting, or the name of a GPU, can only be asked there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..config.run import RunConfig
from ..engine.job import Job
from ..errors import InputError
from ..models.checkpoint import find_checkpoint
from ..planning.cards import Card
from ..planning.forecast import Degrees
from ..planning.plan import make_plan, this_card
from .run_file import BatchJob


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

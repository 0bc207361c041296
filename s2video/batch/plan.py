"""Planning of a batch: the order of its jobs, and their predicted times.

Imports torch only to read the name of a GPU.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache

from ..config.run import RunConfig
from ..errors import InputError
from ..models.checkpoint import OpenModel
from ..planning.cards import Card
from ..planning.forecast import Forecast
from ..planning.plan import plan_for, this_card
from ..planning.step import Degrees
from ..system.terminal import printable
from .fates import TO_MAKE
from .run_file import BatchJob


def models_of(config: RunConfig) -> str:
    """Return a key that is equal for jobs that the same engine can make."""
    return json.dumps([config.model.model_dump(mode="json"), config.parallel.model_dump(mode="json")])


def in_order(jobs: Sequence[BatchJob]) -> list[BatchJob]:
    """Sort jobs by models, then by prompts, so that each is loaded or encoded once. The sort is stable."""
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


def predict_seconds(
    jobs: Sequence[BatchJob], open_model: OpenModel, *, world_size: int, card: Card | None = None
) -> list[float | None]:
    """Predict the seconds of each job's denoising with the cost model; None if it does not know the model.

    Args:
        card: the card; None means this machine's.
    """
    forecasts = predict(jobs, open_model, world_size=world_size, card=card)
    steps = [job.config.sampling.expected_steps for job in jobs]
    return [None if each is None else each.seconds * n for each, n in zip(forecasts, steps, strict=True)]


def predict(
    jobs: Sequence[BatchJob], open_model: OpenModel, *, world_size: int, card: Card | None = None
) -> list[Forecast | None]:
    """Return the forecast of each job on the mesh that it would run on; None if the cost model does not know the model.

    Args:
        card: the card; None means this machine's.
    """

    @cache
    def predicted(dumped: str) -> Forecast | None:
        config = RunConfig.model_validate_json(dumped)
        try:
            checkpoint = open_model(*config.model.source)
            target = this_card(config.model.device) if card is None else card
            plan = plan_for(config, world_size, target, checkpoint)
        except InputError:
            return None
        degrees = _degrees(config, world_size)
        return next((c for c in plan.candidates if c.degrees == degrees), plan.best).forecast

    return [predicted(_without_texts(job.config).model_dump_json()) for job in jobs]


def _without_texts(config: RunConfig) -> RunConfig:
    """Return the part of a config that affects its cost."""
    sampling = config.sampling.model_copy(update={"seed": 0})
    return RunConfig(model=config.model, sampling=sampling, guidance=config.guidance, parallel=config.parallel)


def _degrees(config: RunConfig, world_size: int) -> Degrees | None:
    """Return the degrees of the config's mesh; None if the plan chooses them."""
    parallel = config.parallel
    if parallel.degrees == "auto":
        return None
    rest = world_size // parallel.branch
    ring = parallel.ring or (rest // parallel.ulysses if parallel.ulysses else 1)
    return Degrees(ring, parallel.ulysses or rest // ring, parallel.branch)


def describe(
    jobs: Sequence[BatchJob],
    seconds: Sequence[float | None],
    outlooks: Sequence[str],
    *,
    replicas: int,
    world_size: int,
) -> str:
    """Return the output of `--dry-run`: a line for each job, and the total of those that would be made.

    Args:
        seconds: predicted time of each job.
        outlooks: what would become of each job; see `fates.outlook`.
    """
    lines = []
    width = max(map(len, outlooks), default=0)
    for number, (job, predicted, outlook) in enumerate(zip(jobs, seconds, outlooks, strict=True), 1):
        sampling = job.config.sampling
        size = f"{sampling.width}x{sampling.height}x{sampling.num_frames}, {sampling.num_inference_steps} steps"
        prompt = " ".join((job.config.prompt or "").split())
        shown = prompt if len(prompt) <= 60 else f"{prompt[:59]}…"
        lines.append(
            f"{number:4d}  {outlook:<{width}}  {job.config.output.path}  {size}, seed {sampling.seed}, "
            f"{spoken(predicted)}  {shown}"
        )
    to_make = [predicted for predicted, outlook in zip(seconds, outlooks, strict=True) if outlook in TO_MAKE]
    known = [predicted for predicted in to_make if predicted is not None]
    cards = ", ".join(sorted({this_card(job.config.model.device).name for job in jobs}))
    total = spoken(sum(known) / replicas if known or not to_make else None)
    counts = Counter(outlooks)
    others = "".join(f", {counts[outlook]} {outlook}" for outlook in sorted(counts.keys() - TO_MAKE))
    lines.append(
        f"{len(jobs)} videos, {len(to_make)} to make{others}; "
        f"{total} in total on {replicas} x {world_size} x {cards}; predicted by the cost model for "
        "denoising only, not measured" + (" (a rough guess for the CPU)" if "cpu" in cards else "")
    )
    return "\n".join(map(printable, lines))


def spoken(seconds: float | None) -> str:
    """Return a time as text."""
    if seconds is None:
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

"""The page at `/`: a form for new videos, and those that there are, in groups that differ in ω alone.

Collects what the page shows; `review/templates/serve.html` shows it, and `serve.js` keeps it up to date.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from ..batch.plan import predict_seconds, spoken
from ..batch.run_file import BatchJob
from ..config.run import RunConfig
from ..review.html import counted, render
from ..review.page import Media
from .jobs import Job
from .queue import JobQueue
from .video_request import Limits, Models, Request

MOST = 60  # videos on the page, the newest
_TITLE = "s2video"
_PLAYS = ("h264",)
_KEY = ("model", "prompt", "negative_prompt", "size", "frames", "fps", "seed", "steps", "cfg_scale")


class Card(NamedTuple):
    """A video of a group, as `parts.player` takes it."""

    name: str
    media: Media
    named: dict[str, str]


class State(NamedTuple):
    """A line about a job."""

    id: str
    name: str
    state: str
    progress: int
    words: str
    error: str | None
    links: dict[str, str]


@dataclass(frozen=True)
class Group:
    """Videos of one prompt and seed that differ in ω."""

    key: str
    prompt: str
    words: str
    settings: str
    jobs: list[State]
    cards: list[Card]

    @property
    def version(self) -> str:
        """Changes when more than the progress of a job has changed."""
        return " ".join(f"{job.id}:{job.state}" for job in self.jobs)

    @property
    def is_pair(self) -> bool:
        """Whether one can be wiped over the other."""
        return len(self.cards) == 2 and all(card.media.plays for card in self.cards)

    @property
    def is_active(self) -> bool:
        """Whether a job of it waits or runs."""
        return any(job.state in ("waiting", "running") for job in self.jobs)


def page(queue: JobQueue, models: Models, limits: Limits) -> str:
    """Return the page as HTML."""
    shown = [_model(name, config, models) for name, config in models.configs.items()]
    return render(
        "serve.html",
        title=_TITLE,
        models=shown,
        models_json=json.dumps(shown),
        groups=groups_of(queue.page(after=None, limit=MOST, order="desc")[0]),
        limits=limits,
    )


def history(queue: JobQueue) -> str:
    """Return the videos alone, for a page that is open."""
    return render("history.html", groups=groups_of(queue.page(after=None, limit=MOST, order="desc")[0]))


def key_page() -> str:
    """Return the page that asks for the server's key."""
    return render("key.html", title=_TITLE)


def groups_of(jobs: Iterable[Job]) -> list[Group]:
    """Return groups in the order of their newest video; in a group, ω rises. Jobs with equal settings are apart."""
    found: dict[tuple[Any, ...], list[dict[float, Job]]] = {}
    for job in jobs:
        image = (job.shown["image"] or "").partition(".")[0]
        sets = found.setdefault((image, *(job.shown[name] for name in _KEY)), [])
        scale = float(job.shown["s2_scale"])
        place = next((one for one in sets if scale not in one), None)
        if place is None:
            sets.append({scale: job})
        else:
            place[scale] = job
    ordered = [[one[scale] for scale in sorted(one)] for sets in found.values() for one in sets]
    return [_group(jobs) for jobs in sorted(ordered, key=lambda jobs: max(job.id for job in jobs), reverse=True)]


def estimate(request: Request, queue: JobQueue, models: Models, *, world_size: int, replicas: int) -> dict[str, Any]:
    """Return what a request would make and how long that takes, as numbers and as a sentence.

    By the pace of finished videos of the same model where there are some; else by the cost model.
    """
    config = RunConfig.model_validate_json(request.entry.config)
    seconds: float | None
    pace = queue.pace(request.model, _work)
    if pace is not None:
        seconds, source = pace * _work(request.shown), "by the last videos"
    else:
        job = BatchJob(request.entry.name, "request", config)
        predicted = predict_seconds([job], models.open, world_size=world_size)[0]
        seconds, source = predicted, "a rough guess, before the first video"
    waiting = queue.count()["waiting"]
    frames = request.shown["frames"]
    parts = [f"{counted(frames, 'frame')} at {float(Fraction(request.shown['fps'])):g} per second"]
    parts.append("time unknown" if seconds is None else f"about {spoken(seconds)} a video ({source})")
    if waiting:
        parts.append(f"{waiting} before it" + (f" on {replicas} replicas" if replicas > 1 else ""))
    known = {name: request.shown[name] for name in ("size", "frames", "fps", "seconds", "steps")}
    return {**known, "seconds_to_make": seconds, "ahead": waiting, "words": " · ".join(parts)}


def _work(shown: Any) -> float:
    """Return a number that grows as the time of a video does, for videos of one model; attention is left out."""
    width, height = map(int, shown["size"].split("x"))
    passes = (1 if shown["cfg_scale"] == 1 else 2) + (0.72 if shown["s2_scale"] else 0.0)
    return float(width * height * shown["frames"] * shown["steps"] * passes)


def _model(name: str, config: RunConfig, models: Models) -> dict[str, Any]:
    """Return what the form needs to know of a model."""
    info, sampling = models.open(*config.model.source).info, config.sampling
    return {
        "name": name,
        "width": sampling.width,
        "height": sampling.height,
        "seconds": round(float(sampling.num_frames / config.output.fps), 3),
        "steps": sampling.num_inference_steps,
        "cfg_scale": config.guidance.cfg_scale,
        "s2_scale": config.guidance.s2_scale,
        "image": info.image,
        "multiple": info.spatial_factor * info.patch_size[1],
        "example": config.prompt or "what the video shows",
    }


def _group(jobs: Sequence[Job]) -> Group:
    first = jobs[0]
    shown = first.shown
    names = [_name(job) for job in jobs]
    words = [shown["model"], shown["size"], f"{shown['frames']} frames", f"seed {shown['seed']}"]
    words += [f"{shown['steps']} steps", f"λ {shown['cfg_scale']:g}"]
    kept = ("model", "prompt", "negative_prompt", "seconds", "seed", "steps", "cfg_scale")
    settings = {name: shown[name] for name in kept}
    settings["width"], settings["height"] = shown["size"].split("x")
    settings["image"] = shown["image"] is not None
    settings["s2_scale"] = max(job.shown["s2_scale"] for job in jobs)
    return Group(
        key=jobs[0].id,
        prompt=shown["prompt"],
        words=" · ".join(words),
        settings=json.dumps(settings),
        jobs=[_state(job, name) for job, name in zip(jobs, names, strict=True)],
        cards=[_card(job, name) for job, name in zip(jobs, names, strict=True) if job.state == "done"],
    )


def _name(job: Job) -> str:
    scale = job.shown["s2_scale"]
    base = "CFG" if job.shown["cfg_scale"] != 1 else "cond"
    return f"S², ω {scale:g}" if scale else base


def _state(job: Job, name: str) -> State:
    left = "" if job.seconds_left is None else f", {job.seconds_left:.0f} s left"
    words = {
        "waiting": "next" if job.ahead == 0 else f"{job.ahead} before it",
        "loading": "loading the model",
        "denoising": f"step {job.step} of {job.steps}{left}",
        "decoding": "decoding",
    }.get(job.phase, "")
    links = {}
    if job.state == "done":
        base = f"/v1/videos/{job.id}"
        links = {"download": f"{base}/content", "sidecar": f"{base}/sidecar"}
    return State(job.id, name, job.state, job.progress, words, job.error, links)


def _card(job: Job, name: str) -> Card:
    content = f"/v1/videos/{job.id}/content"
    plays = job.shown["codec"] in _PLAYS
    width, height = map(int, job.shown["size"].split("x"))
    thumbnail = f"{content}?variant=thumbnail"
    media = Media(
        plays=plays,
        embedded=False,
        source=content if plays else thumbnail,
        poster=thumbnail if plays else None,
        width=width,
        height=height,
        num_frames=job.shown["frames"],
        fps=float(Fraction(job.shown["fps"])),
        has_sound=False,
    )
    return Card(name, media, {"": name})

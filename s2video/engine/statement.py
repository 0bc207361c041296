"""What a job consists of, field by field: ranks compare it before the first step, and a resume point keeps it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..config.marks import marked_settings
from ..config.run import RunConfig
from ..geometry import LatentShape
from ..models.control import Pictures
from ..records.sidecar import versions


def jobs_statement(jobs: Sequence[RunConfig], *, resume: bool) -> dict[str, Any]:
    """Return what ranks must have in common before the first of several videos, besides what each video compares."""
    return {"number of videos": len(jobs), "--resume": resume} | {
        f"{name} of video {number}": value
        for number, job in enumerate(jobs, 1)
        for name, value in (("prompt", job.prompt), ("seed", job.sampling.seed))
    }


class Batch(NamedTuple):
    """Videos that are denoised together: a prompt and a seed for each, and what they share."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    negative_prompt: str
    mask_seed: int


def latents_statement(
    config: RunConfig,
    batch: Batch,
    *,
    images: Pictures | None,
    loras: Mapping[str, str],
    latent_shape: LatentShape,
    scheduler: Any,
) -> dict[str, Any]:
    """Return everything that decides the latents, beyond rounding, except the weights: JSON-like values by field."""
    return marked_settings(config.model_dump(mode="json"), frozenset({"latents"})) | {
        "prompt": list(batch.prompts),
        "negative_prompt": batch.negative_prompt,
        "seed": list(batch.seeds),
        "guidance.mask_seed": batch.mask_seed,
        "images": [] if images is None else images.digests(),
        "model.lora": dict(loras),
        "latent_shape": [latent_shape.frames, latent_shape.height, latent_shape.width],
        # what diffusers adds for itself is in the order of a set, which differs from process to process
        "scheduler": {key: value for key, value in scheduler.config.items() if not key.startswith("_")},
        "scheduler class": type(scheduler).__name__,
        # chooses kernels if the config names none, and kernels differ in the last bits
        "attention backend (DIFFUSERS_ATTN_BACKEND)": os.environ.get("DIFFUSERS_ATTN_BACKEND"),
    }


def rank_statement(
    config: RunConfig, weights: Mapping[str, str], settings_files: Mapping[str, str], machine: Mapping[str, str | bool]
) -> dict[str, Any]:
    """Return what ranks must have in common besides `latents_statement`.

    Args:
        weights: from `parallel.same_files.value_digests`.
        settings_files: `Checkpoint.settings_digests()`.
        machine: from `records.sidecar.machine_settings`.
    """
    settings = marked_settings(config.model_dump(mode="json"), frozenset({"frames", "rounding"}))
    return {key: value for key, value in settings.items() if not key.startswith("output.")} | {
        "model.revision": config.model.revision,
        **{f"weights of {name}": digest for name, digest in weights.items()},
        **{f"file {name}": digest for name, digest in settings_files.items()},
        **{f"machine.{key}": value for key, value in machine.items()},
        "versions": versions(),
    }

"""What determines the pixels of a video: the settings that count, and a digest of everything there is.

Reads weights only to hash them, and imports neither torch nor diffusers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config.marks import PIXELS, marked_settings
from ..config.run import RunConfig
from ..models.lora import lora_digests
from ..system.files import user_path
from ..version import __version__


def deciding(facts: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return what determines a video, from the facts in its sidecar, to be compared with that of another."""
    decided = [facts[key] for key in ("prompt", "negative_prompt", "seed", "masks", "weights")]
    decided += [image["digest"] for image in facts["images"]]
    return decided, marked_settings(facts["config"], PIXELS)


def job_key(job: RunConfig, checkpoint: Mapping[str, str]) -> str:
    """Return a digest of everything that determines a job's video.

    Args:
        checkpoint: `Checkpoint.digests()`.

    Raises:
        InputError: a LoRA that cannot be found.
    """
    seed = job.sampling.seed
    determines = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": seed,
        "mask_seed": seed if job.guidance.mask_seed is None else job.guidance.mask_seed,
        "settings": marked_settings(job.model_dump(mode="json"), PIXELS),
        "checkpoint": dict(checkpoint),
        "loras": lora_digests(job.model.lora),
        "images": [_file_digest(path) for path in job.image_paths],
        "audio": _file_digest(None if job.output.audio is None else user_path(job.output.audio)),
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "numpy")
    return {"s2video": __version__} | {name: version(name) for name in names}


def _file_digest(path: Path | None) -> str | None:
    """Of an image or a sound; None if there is none, or it is missing: then the job fails until it is there."""
    if path is None or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()

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


def deciding(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines a video, by name, from the facts in its sidecar."""
    decided = {key: facts[key] for key in ("prompt", "negative_prompt", "seed", "masks", "weights")}
    decided["images"] = [image["digest"] for image in facts["images"]]
    if facts.get("control"):
        decided["control"] = [f"{part['kind']} {part['sha256']}" for part in facts["control"]]
    newer = {key: facts[key] for key in _NEWER if facts.get(key)}
    if facts["config"].get("output", {}).get("credentials"):
        newer["is signed"] = True  # by whom does not count, so that certificates can be renewed
    return decided | newer | marked_settings(facts["config"], PIXELS)


def first_difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Return in words the first thing by which the facts of a sidecar determine another video; None if none does.

    What older sidecars do not record is not compared.

    Raises:
        KeyError, TypeError: facts that are not those of a sidecar.
    """
    then, now = deciding(recorded), deciding(wanted)
    for name in sorted(then.keys() | now.keys(), key=lambda name: (name == "masks", name)):  # they follow from others
        if name in _NEWER and not (name in then and name in now):
            continue
        if (before := then.get(name)) != (after := now.get(name)):
            if isinstance(before, Mapping) and isinstance(after, Mapping):
                part = min(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
                return f"{name}: {part} is another"
            return f"{name} was {_short(before)}, now it is {_short(after)}"
    return None


_NEWER = ("model_files", "audio_sha256")  # not in the sidecars of version 0.1.0


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def job_key(job: RunConfig, checkpoint: Mapping[str, str]) -> str:
    """Return a digest of everything that determines a job's video.

    Args:
        checkpoint: `Checkpoint.digests()`.

    Raises:
        InputError: a LoRA that cannot be found.
    """
    seed = job.sampling.seed
    determines: dict[str, Any] = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": seed,
        "mask_seed": seed if job.guidance.mask_seed is None else job.guidance.mask_seed,
        "settings": marked_settings(job.model_dump(mode="json"), PIXELS),
        "checkpoint": dict(checkpoint),
        "loras": lora_digests(job.model.lora),
        "images": [_file_digest(path) for path in job.image_paths],
        "audio": audio_digest(job),
        "versions": _versions(),
    }
    if job.control.files:
        determines["control"] = [[file.setting, _content_digest(file.path)] for file in job.control.files]
    if job.output.credentials is not None:
        determines["is signed"] = True
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "numpy")
    return {"s2video": __version__} | {name: version(name) for name in names}


def audio_digest(job: RunConfig) -> str | None:
    """Return SHA-256 of the file of a job's sound; None if there is none."""
    return _file_digest(None if job.output.audio is None else user_path(job.output.audio))


def _file_digest(path: Path | None) -> str | None:
    """Of an image or a sound; None if there is none, or it is missing: then the job fails until it is there."""
    if path is None or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _content_digest(path: Path) -> str | None:
    """Of a file as `_file_digest`; of a folder, of the names and the contents of its files."""
    if not path.is_dir():
        return _file_digest(path)
    files = [[file.name, _file_digest(file)] for file in sorted(path.iterdir())]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()

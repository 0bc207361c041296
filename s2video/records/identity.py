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

from ..config.run import RunConfig
from ..models.checkpoint import read_family, weight_digests
from ..models.lora import lora_digests
from ..version import __version__

# Settings that leave no trace in the video; the seed and the weights that were used are compared themselves.
_UNSEEN = {"model.path", "model.revision", "model.device", "sampling.seed"}
_UNSEEN |= {"model.offload_text_encoder", "model.offload_experts"}
_UNSEEN |= {"model.stream_text_encoder", "model.lora"}  # the weights name every LoRA and its scale
_UNSEEN |= {"guidance.share_prefix", "guidance.batch_branches", "output.path", "output.keep_latents"}
_UNSEEN |= {"output.ffmpeg"}


def deciding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a dumped config that leave a trace in the video, by dotted key."""
    settings = {
        f"{section}.{field}": value
        for section in ("model", "sampling", "guidance", "output")
        for field, value in config[section].items()
    }
    return {key: value for key, value in settings.items() if key not in _UNSEEN}


def deciding(facts: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What determines a video, of the facts in its sidecar; to be compared with that of another."""
    decided = [facts[key] for key in ("prompt", "negative_prompt", "seed", "masks", "weights")]
    decided += [image["digest"] for image in facts["images"]]
    return decided, deciding_settings(facts["config"])


@cache
def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "numpy")
    return {"s2video": __version__} | {name: version(name) for name in names}


def checkpoint_digests(folder: Path) -> dict[str, str]:
    """File names -> SHA-256 of all that a checkpoint's components hold: weights, configurations, tokenizers."""
    family = read_family(folder)
    weights = weight_digests(folder)
    small = {}
    for path in sorted(folder.glob("*/*")):
        if path.is_file() and path.parent.name in {*family.components, "scheduler"}:
            small[str(path.relative_to(folder))] = path
    others = [name for name in small if not name.endswith((".safetensors", ".bin", ".md"))]
    return weights | {name: hashlib.sha256(small[name].read_bytes()).hexdigest() for name in others}


def job_key(config: RunConfig, checkpoint: Mapping[str, str]) -> str:
    """A digest of everything that determines the video of a config whose prompt and seed are its own.

    Args:
        checkpoint: from `checkpoint_digests`.

    Raises:
        InputError: a LoRA that cannot be found.
    """
    seed = config.sampling.seed
    told = {
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": seed,
        "mask_seed": seed if config.guidance.mask_seed is None else config.guidance.mask_seed,
        "settings": deciding_settings(config.model_dump(mode="json")),
        "checkpoint": dict(checkpoint),
        "loras": lora_digests(config.model.lora),
        "images": [_file_digest(path) for path in config.image_paths],
        "audio": _file_digest(None if config.output.audio is None else Path(config.output.audio)),
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path | None) -> str | None:
    """Of an image or a sound; None where none is given, or it is missing: the job fails, and runs when it is there."""
    if path is None or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()

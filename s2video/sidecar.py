"""What lies beside a video: the JSON that says how it was made, and the latents it can be decoded from again.

`X.mp4` has the sidecar `X.json` and, on request, `X.latents.safetensors`. From the sidecar it can be told whether a
video is already what a job would make.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import __version__
from .config import RunConfig
from .errors import InputError
from .files import atomic_path
from .masks import step_masks

METADATA_KEY = "s2video"  # safetensors metadata maps strings to strings: ours is one JSON document
# Settings that leave no trace in the video; the seed and the weights that were used are compared themselves.
_UNSEEN = {"model.path", "model.revision", "model.device", "model.offload_text_encoder", "sampling.seed"}
_UNSEEN |= {"model.stream_text_encoder", "model.offload_experts"}
_UNSEEN |= {"guidance.share_prefix", "guidance.batch_branches", "output.path", "output.keep_latents"}


class SavedLatents(NamedTuple):
    latents: Tensor
    facts: dict[str, Any]


def job_facts(
    config: RunConfig,
    *,
    prompt: str,
    negative_prompt: str,
    images: Sequence[Mapping[str, str]],
    seed: int,
    mask_seed: int,
    num_blocks: int,
    num_steps: int,
) -> dict[str, Any]:
    """What determines a video, as JSON: resolved config, prompt, images, seeds, and every mask drawn.

    Args:
        images: the first, and perhaps the last: where it was ("path"), and the SHA-256 of its size and pixels
            ("digest"), which is what counts.
    """
    guidance = config.guidance
    masks = []
    if guidance.s2_scale:
        for step in range(num_steps):
            drawn = step_masks(
                guidance.mask_spec(), num_blocks=num_blocks, seed=mask_seed, step=step, num_steps=num_steps
            )
            masks += [{"step": step, "draw": draw, "dropped": list(mask)} for draw, mask in enumerate(drawn)]
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "images": list(images),
        "seed": seed,
        "mask_seed": mask_seed,
        "model": config.model.path,
        "config": config.model_dump(mode="json"),
        "masks": masks,
    }


def is_sidecar_of(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the sidecar at `path` tells of the video that `facts` (with `weights`) determine.

    The name of the video, the machine and the ranks that made it may be others.
    """
    try:
        return _deciding(json.loads(path.read_text(encoding="utf-8"))) == _deciding(facts)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _deciding(facts: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    settings = {
        f"{section}.{field}": value
        for section in ("model", "sampling", "guidance", "output")
        for field, value in facts["config"][section].items()
    }
    return (
        [facts[key] for key in ("prompt", "negative_prompt", "seed", "masks", "weights")]
        + [image["digest"] for image in facts["images"]],
        {key: value for key, value in settings.items() if key not in _UNSEEN},
    )


def container_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """What the video file itself says, under names that MP4 has, so that every player shows them."""
    return {"title": facts["prompt"], "comment": f"s2video {__version__}: {facts['model']}, seed {facts['seed']}"}


@cache
def versions() -> dict[str, str]:
    """Versions that can change the last bits of a result."""
    names = ("diffusers", "transformers", "numpy")
    found = {"s2video": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in names}


def save_latents(latents: Tensor, path: Path, facts: dict[str, Any]) -> None:
    """Write the tensor `latents`, [1, C, T, H, W] as the transformer sees them, with `facts` as metadata."""
    write_tensors(path, {"latents": latents}, facts)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a safetensors file, whole or not at all, with `facts` as metadata."""
    # safetensors refuses tensors that share memory
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, metadata={METADATA_KEY: json.dumps(facts)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # safetensors' own writer makes files that only their owner can read


def load_latents(path: Path) -> SavedLatents:
    """Read what `save_latents` wrote.

    Raises:
        InputError: no such file, no safetensors, no tensor `latents` of five dimensions, or NaN in it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            latents = file.get_tensor("latents")
        facts = json.loads(metadata.get(METADATA_KEY, "{}"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; expected latents that --keep-latents left") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: expected a safetensors file with the tensor `latents` ({error})") from None
    if latents.ndim != 5 or latents.shape[0] != 1 or not torch.isfinite(latents.float()).all():
        raise InputError(
            f"{path}: expected finite latents of shape [1, C, T, H, W], got {list(latents.shape)}; sample them again"
        )
    return SavedLatents(latents, facts)

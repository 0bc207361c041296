"""The files next to a video: the JSON that says how it was made, and the latents that it can be decoded from.

`X.mp4` has the sidecar `X.json` and, on request, `X.latents.safetensors`. The sidecar shows whether a video is already
what a job would make.
"""

import hashlib
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

from ..config.run import RunConfig
from ..errors import InputError
from ..guidance.masks import MaskSchedule
from ..media.formats import Codec
from ..parallel.mesh import Mesh
from ..system.files import atomic_path, sha256, size
from ..version import __version__
from .identity import deciding
from .sidecar_model import SCHEMA_VERSION, LatentsRecord, Sidecar

NUM_PROBES = 64
MAX_METADATA_BYTES = 8_000  # of one text in the container
METADATA_KEY = "s2video"  # safetensors metadata maps strings to strings: ours is one JSON document


class SavedLatents(NamedTuple):
    latents: Tensor
    facts: dict[str, Any]


def job_facts(
    config: RunConfig,
    *,
    images: Sequence[Mapping[str, str]],
    masks: MaskSchedule,
    cut_prompts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return what determines a video, as JSON: its config, prompt, images, seeds, and every mask that is drawn.

    Args:
        config: of this one video: its prompt and its seed are the video's.
        images: of the first and, if there is one, the last image: its "path", and "digest", the SHA-256 of its size and
            pixels, which is what counts.
        masks: those that the engine draws.
        cut_prompts: prompts that are longer than the model reads, see `models.prompts`.
    """
    return {
        "prompt": config.prompt or "",
        "negative_prompt": config.negative_prompt,
        "cut_prompts": list(cut_prompts),
        "images": list(images),
        "seed": config.sampling.seed,
        "mask_seed": masks.seed,
        "model": config.model.path,
        "num_blocks": masks.num_blocks,
        "num_steps": masks.num_steps,
        "config": config.model_dump(mode="json"),
        "masks": masks.records(),
    }


def run_facts(
    latents: Tensor,
    mesh: Mesh,
    *,
    weights: Mapping[str, str],
    timings: Mapping[str, float],
    resumed_after_step: int | None = None,
) -> dict[str, Any]:
    """Return what a run adds to `job_facts`, as JSON.

    Args:
        latents: [1, C, T, H, W].
        weights: SHA-256 of the weight files.
        timings: seconds, by phase.
    """
    return {
        "weights": dict(weights),
        "latents": latents_record(latents).model_dump(mode="json"),
        "resumed_after_step": resumed_after_step,
        "mesh": mesh.describe(),
        "machine": machine(mesh.device),
        "versions": versions(),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
    }


def make_sidecar(facts: Mapping[str, Any], place: Path) -> Sidecar:
    """Return the sidecar of the video at `place`, a file or a sequence's folder; `facts` of its job and its run."""
    output = {"name": place.name, "bytes": size(place), "sha256": sha256(place)}
    return Sidecar.model_validate({"schema": SCHEMA_VERSION, **facts, "output": output})


def latents_record(latents: Tensor) -> LatentsRecord:
    """Return the digest and the values by which other latents can be compared with these, [1, C, T, H, W]."""
    values = latents.detach().to("cpu", torch.float32).contiguous()
    # Spread by a hash: evenly spaced positions would fall into a few columns of the picture.
    words = [hashlib.sha256(str(k).encode()).digest()[:8] for k in range(NUM_PROBES)]
    positions = [int.from_bytes(word, "big") % values.numel() for word in words]
    digest = hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()
    probes = values.flatten()[positions].tolist()
    return LatentsRecord.model_validate({"shape": tuple(values.shape), "sha256": digest, "probes": probes})


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what can change the last bits of a result on a machine, besides ranks and versions."""
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "threads": torch.get_num_threads()}


def is_sidecar_of(path: Path, facts: Mapping[str, Any]) -> bool:
    """Return whether the sidecar at `path` describes the video that `facts` (with `weights`) determine.

    The name of the video, the machine and the ranks that made it can differ.
    """
    try:
        return deciding(json.loads(path.read_text(encoding="utf-8"))) == deciding(facts)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def container_metadata(facts: Mapping[str, Any], codec: Codec) -> dict[str, str]:
    """Return the metadata of the video file itself, under names of its format, so that every program shows them.

    A text of over 8,000 bytes is cut; the sidecar has it whole.
    """
    maker = f"s2video {__version__}: {facts['model']}"
    if codec == "exr":
        texts = {"prompt": facts["prompt"], "seed": str(facts["seed"]), "ImageDescription": maker}
    else:
        texts = {"title": facts["prompt"], "comment": f"{maker}, seed {facts['seed']}"}
    return {key: _shortened(text) for key, text in texts.items()}


def _shortened(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_METADATA_BYTES:
        return text
    return encoded[: MAX_METADATA_BYTES - len("…".encode())].decode(errors="ignore") + "…"


@cache
def versions() -> dict[str, str]:
    """Return the versions that can change the last bits of a result."""
    names = ("diffusers", "transformers", "numpy")
    found = {"s2video": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in names}


def save_latents(latents: Tensor, path: Path, facts: dict[str, Any]) -> None:
    """Write the tensor `latents`, [1, C, T, H, W] as the transformer uses them, with `facts` as metadata."""
    write_tensors(path, {"latents": latents}, facts)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a safetensors file, whole or not at all, with `facts` as metadata."""
    # safetensors refuses tensors that share memory
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, metadata={METADATA_KEY: json.dumps(facts)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # safetensors' own writer makes files that only their owner can read


def load_latents(path: Path) -> SavedLatents:
    """Read a file of `save_latents`.

    Raises:
        InputError: no such file, not safetensors, no tensor `latents` of five dimensions, or NaN in it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            latents = file.get_tensor("latents")
        facts = json.loads(metadata.get(METADATA_KEY, "{}"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected latents of a --keep-latents run") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: expected a safetensors file with the tensor `latents` ({error})") from None
    if latents.ndim != 5 or latents.shape[0] != 1 or not torch.isfinite(latents.float()).all():
        raise InputError(
            f"{path}: expected finite latents of shape [1, C, T, H, W], got {list(latents.shape)}; sample them again"
        )
    return SavedLatents(latents, facts)

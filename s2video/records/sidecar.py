"""What lies beside a video: the JSON that says how it was made, and the latents it can be decoded from again.

`X.mp4` has the sidecar `X.json` and, on request, `X.latents.safetensors`. From the sidecar it can be told whether a
video is already what a job would make.
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
METADATA_KEY = "s2video"  # safetensors metadata maps strings to strings: ours is one JSON document


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
    masks: MaskSchedule,
) -> dict[str, Any]:
    """What determines a video, as JSON: resolved config, prompt, images, seeds, and every mask drawn.

    Args:
        images: the first, and perhaps the last: where it was ("path"), and the SHA-256 of its size and pixels
            ("digest"), which is what counts.
        masks: those that the engine draws.
    """
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "images": list(images),
        "seed": seed,
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
    """What a run adds to `job_facts`, as JSON.

    Args:
        latents: what is decoded, [1, C, T, H, W].
        weights: SHA-256 of the weight files.
        timings: seconds, by what they were spent on.
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
    """All facts, of the job and of its run, and those of the video at `place`, a file or the folder of a sequence."""
    output = {"name": place.name, "bytes": size(place), "sha256": sha256(place)}
    return Sidecar.model_validate({"schema": SCHEMA_VERSION, **facts, "output": output})


def latents_record(latents: Tensor) -> LatentsRecord:
    """By what other latents are told to be the same as these, [1, C, T, H, W]."""
    values = latents.detach().to("cpu", torch.float32).contiguous()
    # Spread by a hash: positions at even distances would fall into a few columns of the picture.
    words = [hashlib.sha256(str(k).encode()).digest()[:8] for k in range(NUM_PROBES)]
    positions = [int.from_bytes(word, "big") % values.numel() for word in words]
    digest = hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()
    probes = values.flatten()[positions].tolist()
    return LatentsRecord.model_validate({"shape": tuple(values.shape), "sha256": digest, "probes": probes})


def machine(device: torch.device) -> dict[str, str | int]:
    """What of a machine can change the last bits of a result, beside the ranks and the versions."""
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "threads": torch.get_num_threads()}


def is_sidecar_of(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the sidecar at `path` tells of the video that `facts` (with `weights`) determine.

    The name of the video, the machine and the ranks that made it may be others.
    """
    try:
        return deciding(json.loads(path.read_text(encoding="utf-8"))) == deciding(facts)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def container_metadata(facts: Mapping[str, Any], codec: Codec) -> dict[str, str]:
    """What the video file itself says, under names that its format has, so that every program shows them."""
    if codec == "exr":
        maker = f"s2video {__version__}: {facts['model']}"
        return {"prompt": facts["prompt"], "seed": str(facts["seed"]), "ImageDescription": maker}
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

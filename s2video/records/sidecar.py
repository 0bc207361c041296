"""The files next to a video: a JSON sidecar that records how it was made, and its latents.

`X.mp4` has the sidecar `X.json` and, on request, `X.latents.safetensors`. More files of the same frames have sidecars
of their own, such as `X.mov.json`. Video and sidecar get their names together. The sidecar shows whether a job's video
exists already.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config.run import RunConfig
from ..config.text import describe_problems
from ..errors import InputError
from ..guidance.masks import MaskSchedule
from ..guidance.reuse import StepPasses
from ..media.output_paths import VideoFile
from ..parallel.mesh import Mesh
from ..system.files import atomic_path, sha256, size
from ..system.json_reader import parse_json
from ..version import __version__
from .identity import audio_digest, first_difference
from .integrity import UNCHANGED, latents_of, latents_state, video_state
from .sidecar_model import (
    METADATA_KEY,
    JobFacts,
    LatentsRecord,
    Sidecar,
    has_own_digest,
    read_sidecar,
    record_digest,
)

NUM_PROBES = 64


class SavedLatents(NamedTuple):
    latents: Tensor
    facts: dict[str, Any]


def job_facts(
    config: RunConfig,
    *,
    images: Sequence[Mapping[str, str]],
    masks: MaskSchedule,
    passes: Sequence[StepPasses] | None = None,
    cut_prompts: Sequence[Mapping[str, Any]] = (),
    model_files: Mapping[str, str] | None = None,
    conversions: Mapping[str, str] | None = None,
    loras: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return all that determines a video, as JSON: config, prompt, images, seeds, and every mask.

    Args:
        config: the config of this one video, with its prompt and seed.
        images: "path" and "digest" (SHA-256 of size and pixels) of the first and, if there is one, the last image. The
            path does not affect the video.
        masks: the masks that the engine draws.
        passes: what each step computes; None if every step computes all that it uses.
        cut_prompts: the prompts of which the model reads only the beginning, from `models.prompts.cut_prompts`.
        model_files: `Checkpoint.settings_digests()`.
        conversions: `Checkpoint.conversions`.
        loras: `AppliedLora.record()` of each.
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
        "model_files": dict(model_files or {}),
        "conversions": dict(conversions or {}),
        "loras": list(loras),
        "audio_sha256": audio_digest(config),
        "computed": None if passes is None else computed_steps(passes),
    }


def run_facts(
    latents: Tensor,
    mesh: Mesh,
    *,
    weights: Mapping[str, str],
    timings: Mapping[str, float],
    attention: str,
    s2_scales: Sequence[tuple[int, float]] = (),
    resumed_after_step: int | None = None,
) -> dict[str, Any]:
    """Return the facts that a run adds to `job_facts`, as JSON.

    Args:
        latents: [1, C, T, H, W].
        attention: the kernel, `Engine.attention_kernel`.
        weights: SHA-256 of the weight files, by name.
        timings: seconds, by phase.
        s2_scales: (step, ω) for the steps in which `guidance.s2_push` decided it.
        resumed_after_step: the step of the resume point; None if the run was not interrupted.
    """
    return {
        "weights": dict(weights),
        "latents": latents_record(latents).model_dump(mode="json"),
        "s2_scales": [{"step": step, "s2_scale": scale} for step, scale in s2_scales],
        "resumed_after_step": resumed_after_step,
        "mesh": mesh.describe(),
        "machine": machine(mesh.device, attention),
        "versions": versions(),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
    }


def computed_steps(passes: Sequence[StepPasses]) -> dict[str, list[int]]:
    """Return the steps that compute cond, uncond and sub, by name."""
    return {
        name: [step for step, hows in enumerate(passes) if getattr(hows, name) == "computed"]
        for name in StepPasses._fields
    }


def make_sidecar(facts: Mapping[str, Any], path: Path, *, name: str | None = None) -> Sidecar:
    """Return the sidecar of a video, from the facts of its job and run.

    Args:
        path: a file, or a sequence's folder; it may have a temporary name.
        name: that it will have; None: as it is.
    """
    output = {"name": name or path.name, "bytes": size(path), "sha256": sha256(path)}
    return Sidecar.from_facts(facts, output)


def latents_record(latents: Tensor) -> LatentsRecord:
    """Return the digest and sample values that identify latents [1, C, T, H, W]."""
    values = latents.detach().to("cpu", torch.float32).contiguous()
    # Positions come from a hash, because evenly spaced ones would be in few columns of the picture.
    words = [hashlib.sha256(str(k).encode()).digest()[:8] for k in range(NUM_PROBES)]
    positions = [int.from_bytes(word, "big") % values.numel() for word in words]
    digest = hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()
    probes = values.flatten()[positions].tolist()
    return LatentsRecord.model_validate({"shape": tuple(values.shape), "sha256": digest, "probes": probes})


def machine(device: torch.device, attention: str) -> dict[str, str | int | bool]:
    """Return the properties of this machine that can change the last bits of a result, without ranks and versions."""
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "threads": torch.get_num_threads(), **machine_settings(device, attention)}


def machine_settings(device: torch.device, attention: str) -> dict[str, str | bool]:
    """Return those properties that are choices of kernels, which all ranks have to share.

    Args:
        attention: the kernel, `Engine.attention_kernel`.
    """
    return {"attention": attention, "tf32": uses_tf32(device)}


def uses_tf32(device: torch.device) -> bool:
    """Return whether float32 convolutions round their inputs to 10 bits (TF32), which is torch's default on a GPU."""
    return device.type == "cuda" and torch.backends.cudnn.allow_tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"


def why_not_made(
    path: Path, facts: Mapping[str, Any], *, with_latents: bool = False, copies: Sequence[VideoFile] = ()
) -> str | None:
    """Return in words why the video of a sidecar is not the one that a job asks for; None: it is, and is unchanged.

    Ignores the name of the video, the machine and the ranks.

    Args:
        path: X.json.
        facts: what `job_facts` returns, with `weights`.
        with_latents: whether the job wants X.latents.safetensors too.
        copies: more files of the same frames that it wants.
    """
    if not path.exists():
        return f"{path} is missing"
    try:
        sidecar = read_sidecar(path)
        difference = first_difference(sidecar.as_json(), facts)
    except InputError as error:
        return str(error)
    if difference is not None:
        return difference
    video, latents = path.with_name(sidecar.output.name), latents_of(path)
    if (state := video_state(sidecar.output, video)) != UNCHANGED:
        return f"{video} is {state}"
    for copy in copies:
        if (reason := why_no_copy(copy, sidecar)) is not None:
            return reason
    if with_latents and (state := latents_state(sidecar.latents, latents)) != UNCHANGED:
        return f"{latents} is {state}"
    return None


def why_no_copy(file: VideoFile, master: Sidecar) -> str | None:
    """Return in words why a file is not one more of a take, as it was written; None: it is."""
    try:
        sidecar = read_sidecar(file.sidecar)
    except InputError as error:
        return str(error) if file.sidecar.exists() else f"{file.sidecar} is missing"
    if sidecar.output.name != file.video.name or sidecar.latents.sha256 != master.latents.sha256:
        return f"{file.video} is of another take"
    if (state := video_state(sidecar.output, file.video)) != UNCHANGED:
        return f"{file.video} is {state}"
    return None


@cache
def versions() -> dict[str, str]:
    """Return the package versions that can change the last bits of a result."""
    names = ("diffusers", "transformers", "numpy")
    found = {"s2video": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in names}


def save_latents(latents: Tensor, path: Path, facts: dict[str, Any]) -> None:
    """Write the transformer's latents [1, C, T, H, W] as the tensor `latents`, with `facts` as metadata."""
    write_tensors(path, {"latents": latents}, {**facts, "record_sha256": record_digest(facts)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a safetensors file atomically, with `facts` as metadata."""
    # safetensors refuses tensors that share memory
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, metadata={METADATA_KEY: json.dumps(facts)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # the writer of safetensors makes files that only their owner can read


def load_latents(path: Path) -> SavedLatents:
    """Read a file written by `save_latents`.

    Raises:
        InputError: if the file is missing, not safetensors, or has no finite tensor `latents` of shape [1, C, T, H, W].
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            latents = file.get_tensor("latents")
    except FileNotFoundError:
        raise InputError(
            f"{path}: expected latents of a --keep-latents run, got no such file; check the path"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a safetensors file with the tensor `latents`, got an error ({error}); check the path"
        ) from None
    is_usable = latents.ndim == 5 and latents.shape[0] == 1 and latents.numel() > 0 and latents.is_floating_point()
    if not is_usable or not torch.isfinite(latents.float()).all():
        raise InputError(
            f"{path}: expected finite latents of shape [1, C, T, H, W], got {latents.dtype} {list(latents.shape)}; "
            "sample them again"
        )
    return SavedLatents(latents, _checked_facts(metadata.get(METADATA_KEY, "{}"), path))


def _checked_facts(text: str, path: Path) -> dict[str, Any]:
    """The facts in a header of `save_latents`. Raises InputError for what the sidecar would not hold either."""
    facts = parse_json(text, str(path), remedy="sample them again")
    if isinstance(facts, dict) and not has_own_digest(facts):
        raise InputError(f"{path}: changed since it was written: its record_sha256 is another; sample them again")
    try:
        JobFacts.model_validate(facts)
    except ValidationError as error:
        raise InputError(f"{path}: {describe_problems(error, JobFacts)}") from None
    return dict(facts)

"""What is asked for, held against what a checkpoint can serve, before any model is loaded or any process started.

It imports neither torch nor diffusers, except where a setting can only be checked there.
"""

from __future__ import annotations

import math

from ..config.run import RunConfig
from ..decoding.kinds import VAES, WAN_VAE
from ..errors import InputError
from .family import CheckpointInfo

_PIPELINE_MULTIPLE = 16  # pixels; diffusers' pipelines take no other sizes, and results are held against them


def check_request(config: RunConfig, checkpoint: CheckpointInfo, *, world_size: int = 1) -> None:
    """Raise InputError for the first setting that the checkpoint, the device or the number of ranks cannot serve."""
    _check_size(config, checkpoint)
    _check_masks(config, checkpoint.num_blocks)
    length = config.sampling.max_sequence_length
    if checkpoint.text_length not in (None, length):
        raise InputError(
            f"sampling.max_sequence_length: expected {checkpoint.text_length}, which this checkpoint's "
            f"cross-attention counts on, got {length}"
        )
    if config.parallel.backend == "nccl" and config.model.device == "cpu":
        raise InputError("parallel.backend: nccl needs model.device cuda, got cpu: use gloo, or auto")
    _check_experts(config, checkpoint)
    if config.parallel.branch == 2 and 1 in config.guidance.cfg_scales:
        scale = "cfg_scale" if config.guidance.cfg_scale == 1 else "cfg_scale_2"
        raise InputError(
            f"parallel.branch: 2 runs cond and uncond side by side, but with guidance.{scale} 1 there is no uncond: "
            "set parallel.branch to 1, and all ranks share cond's tokens"
        )
    if config.parallel.decode == "sharded" and not VAES[checkpoint.vae_class].is_causal:
        raise InputError(
            f"parallel.decode: sharded needs {WAN_VAE}, this is {checkpoint.vae_class}: use tiled, or auto"
        )
    if config.model.lora:
        _check_loras(config, checkpoint)
    # What follows imports torch, so only where it is needed.
    if config.parallel.weights == "zero3":
        from ..parallel.zero3 import require_deepspeed

        require_deepspeed()
    if (config.parallel.ulysses, config.parallel.ring, config.parallel.branch) != (None, None, 1):
        from ..parallel.mesh import resolve_degrees

        if resolve_degrees(config.parallel, world_size)["ring"] > 1:
            from ..parallel.ring import check_backend

            check_backend(config.model.attention_backend)
    if config.model.device == "cuda":
        from ..parallel.mesh import resolve_device

        resolve_device("cuda")
    if config.model.attention_backend is not None:
        from diffusers.models.attention_dispatch import AttentionBackendName

        names = [backend.value for backend in AttentionBackendName]
        if config.model.attention_backend not in names:
            public = ", ".join(name for name in names if not name.startswith("_"))
            raise InputError(
                f"model.attention_backend: expected one of {public}, got {config.model.attention_backend!r}"
            )


def check_images(checkpoint: CheckpointInfo, *, image: bool, last_image: bool) -> None:
    """Raise InputError unless such a checkpoint takes images so given, or none."""
    if last_image and not image:
        raise InputError("last_image: there is no first image: give --image too, or image in the config")
    for name, takes, given in (("image", checkpoint.image, image), ("last_image", checkpoint.last_image, last_image)):
        option = f"--{name.replace('_', '-')}"
        if given and takes == "none":
            raise InputError(f"{name}: this checkpoint takes none: leave it out, or choose a checkpoint that does")
        if not given and takes == "required":
            raise InputError(f"{name}: this checkpoint needs one: give {option}, or {name} in the config")


def _check_size(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    sampling = config.sampling
    for name, size, patch in (
        ("height", sampling.height, checkpoint.patch_size[1]),
        ("width", sampling.width, checkpoint.patch_size[2]),
    ):
        token = checkpoint.spatial_factor * patch
        step = math.lcm(token, _PIPELINE_MULTIPLE)
        if size % step != 0:
            raise InputError(f"sampling.{name}: expected a multiple of {step}, got {size}: {_nearest(size, step)}")
        if checkpoint.max_positions is not None and size // token > checkpoint.max_positions:
            raise InputError(
                f"sampling.{name}: expected at most {token * checkpoint.max_positions}, as far as the model's "
                f"positions reach, got {size}"
            )
    factor, frames = checkpoint.temporal_factor, sampling.num_frames
    step = factor * checkpoint.patch_size[0]
    offset = 1 + factor * (checkpoint.patch_size[0] - 1)  # the first latent frame holds one frame, later ones `factor`
    if (frames - offset) % step != 0:
        raise InputError(
            f"sampling.num_frames: expected {offset} more than a multiple of {step}, got {frames}: "
            f"{_nearest(frames, step, offset)}"
        )
    if checkpoint.max_positions is not None and 1 + (frames - offset) // step > checkpoint.max_positions:
        raise InputError(
            f"sampling.num_frames: expected at most {offset + step * (checkpoint.max_positions - 1)}, as far as the "
            f"model's positions reach, got {frames}"
        )


def _check_experts(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    if config.guidance.cfg_scale_2 is not None and checkpoint.boundary_ratio is None:
        raise InputError(
            f"guidance.cfg_scale_2: is for a second transformer, and this checkpoint has one; set it to null, got "
            f"{config.guidance.cfg_scale_2:g}"
        )
    if not config.model.offload_experts:
        return
    if checkpoint.boundary_ratio is None:
        raise InputError(
            "model.offload_experts: is for checkpoints with two transformers, and this one has a single one, which "
            "always has its turn: set it to false; parallel.weights streamed keeps its blocks in CPU memory"
        )
    if config.parallel.weights != "replicated":
        raise InputError(
            f"model.offload_experts: moves whole transformers, so it needs parallel.weights replicated, got "
            f"{config.parallel.weights}: set it to false"
            + (", for streamed blocks lie in CPU memory anyway" if config.parallel.weights == "streamed" else "")
        )


def _nearest(value: int, step: int, offset: int = 0) -> str:
    below = offset + (value - offset) // step * step
    legal = [number for number in (below, below + step) if number > 0]
    return f"the nearest are {legal[0]} and {legal[1]}" if len(legal) == 2 else f"the nearest is {legal[0]}"


def _check_masks(config: RunConfig, num_blocks: int) -> None:
    guidance = config.guidance
    blocks = f"the model's blocks, 0 to {num_blocks - 1}"
    if outside := [index for index in guidance.never_drop if index >= num_blocks]:
        raise InputError(f"guidance.never_drop: expected indices of {blocks}, got {outside[0]}")
    if outside := [index for index in guidance.slg.layers if index >= num_blocks]:
        raise InputError(f"guidance.slg.layers: expected indices of {blocks}, got {outside[0]}")
    if guidance.band is not None and guidance.band[1] >= num_blocks:
        raise InputError(f"guidance.band: expected indices of {blocks}, got {list(guidance.band)}")
    eligible = len(guidance.mask_spec().eligible(num_blocks))
    if guidance.drop_count is not None and guidance.drop_count > eligible:
        raise InputError(
            f"guidance.drop_count: expected at most {eligible}, the blocks that never_drop and band leave of "
            f"{num_blocks}, got {guidance.drop_count}"
        )


def _check_loras(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    from .lora import find_lora, require_peft

    if not checkpoint.takes_lora:
        raise InputError("model.lora: diffusers loads no LoRA for this checkpoint's pipeline: leave it out")
    require_peft()
    if config.parallel.weights != "replicated":
        raise InputError(
            f"model.lora: needs the weights whole on every rank: set parallel.weights to replicated, which is "
            f"{config.parallel.weights}, or leave the LoRA out"
        )
    for lora in config.model.lora:
        if lora.component == "transformer_2" and checkpoint.boundary_ratio is None:
            raise InputError(f"model.lora: {lora.path}: this checkpoint has no {lora.component}")
        find_lora(lora.path)

"""Checks of a request against the limits of a checkpoint, before any model is loaded or any process started.

Imports neither torch nor diffusers, except for settings that only they can check.
"""

from __future__ import annotations

import math

from ..config.run import RunConfig
from ..decoding.kinds import VAES, WAN_VAE
from ..errors import InputError
from ..geometry import SoundShape
from ..guidance.reuse import LEAST_STEPS
from .compiled import check_compile
from .family import CheckpointInfo
from .quantization import check_quantization

_PIPELINE_MULTIPLE = 16  # pixels; required by diffusers' pipelines, whose results ours must equal


def check_request(config: RunConfig, checkpoint: CheckpointInfo, *, world_size: int = 1) -> None:
    """Raise InputError for the first setting that the checkpoint, the device or the number of ranks cannot serve."""
    _check_size(config, checkpoint)
    _check_control(config, checkpoint)
    if checkpoint.sound is not None:
        _check_sound(config, checkpoint.sound)
    _check_uncond(config, checkpoint)
    _check_masks(config, checkpoint.num_blocks)
    _check_reuse(config, checkpoint)
    length = config.sampling.max_sequence_length
    if checkpoint.text_length not in (None, length):
        raise InputError(
            f"sampling.max_sequence_length: expected {checkpoint.text_length}, the length that this checkpoint's "
            f"cross-attention needs, got {length}"
        )
    if config.parallel.backend == "nccl" and config.model.device == "cpu":
        raise InputError("parallel.backend: nccl needs model.device cuda, got cpu; use gloo or auto")
    _check_experts(config, checkpoint)
    if config.parallel.branch == 2 and 1 in config.guidance.cfg_scales:
        scale = "cfg_scale" if config.guidance.cfg_scale == 1 else "cfg_scale_2"
        raise InputError(
            f"parallel.branch: 2 runs cond and uncond in parallel, but guidance.{scale} 1 makes no uncond prediction; "
            "set parallel.branch to 1, so that all ranks share the tokens of cond"
        )
    if config.parallel.decode == "sharded" and not VAES[checkpoint.vae_class].is_causal:
        raise InputError(f"parallel.decode: sharded needs {WAN_VAE}, got {checkpoint.vae_class}; use tiled or auto")
    if config.sampling.scheduler is not None or config.sampling.scheduler_options:
        from .schedulers import check_scheduler

        check_scheduler(config.sampling)
    check_compile(config)
    check_quantization(config)
    if config.model.lora:
        _check_loras(config, checkpoint)
    # These checks import torch, so they run only if needed.
    if config.parallel.weights == "zero3":
        from ..parallel.zero3 import require_deepspeed

        require_deepspeed()
    if (config.parallel.ulysses, config.parallel.ring, config.parallel.branch) != (None, None, 1):
        from ..parallel.mesh import resolve_degrees

        if resolve_degrees(config.parallel, world_size)["ring"] > 1:
            from ..parallel.ring import check_backend, named_backend

            check_backend(named_backend(config.model.attention_backend))
    if config.model.device == "cuda":
        from ..parallel.mesh import choose_backend, resolve_device

        device = resolve_device("cuda")
        if world_size > 1:
            choose_backend(config.parallel, device)
    if config.model.attention_backend is not None:
        from diffusers.models.attention_dispatch import AttentionBackendName

        names = [backend.value for backend in AttentionBackendName]
        if config.model.attention_backend not in names:
            public = ", ".join(name for name in names if not name.startswith("_"))
            raise InputError(
                f"model.attention_backend: expected one of {public}, got {config.model.attention_backend!r}"
            )


def check_images(
    checkpoint: CheckpointInfo, *, image: bool, last_image: bool, control: bool = False, num_frames: int | None = None
) -> None:
    """Raise InputError unless the checkpoint accepts this combination of images and control.

    Args:
        num_frames: of the video; None leaves out whether a last image has a frame of its own.
    """
    if control and not checkpoint.control_layers:
        raise InputError(
            "control: expected none for this checkpoint, got files; leave video, mask and references out, or choose a "
            "checkpoint that takes control, such as Wan VACE"
        )
    if (image or last_image) and control:
        raise InputError(
            "image: expected none together with control, got one; put it into control.references, or as a frame into "
            "control.video, with a control.mask that keeps it"
        )
    if last_image and not image:
        raise InputError("last_image: expected a first image too, got none; set --image, or image in the config")
    if last_image and num_frames == 1:
        raise InputError(
            "last_image: expected none for a video of one frame, which is the first image's, got one; leave it out, or "
            "set sampling.num_frames"
        )
    for name, takes, given in (("image", checkpoint.image, image), ("last_image", checkpoint.last_image, last_image)):
        option = f"--{name.replace('_', '-')}"
        if given and takes == "none":
            raise InputError(
                f"{name}: expected none for this checkpoint, got one; leave it out, or choose another checkpoint"
            )
        if not given and takes == "required":
            raise InputError(
                f"{name}: expected one for this checkpoint, got none; set {option}, or {name} in the config"
            )


def check_inputs(checkpoint: CheckpointInfo, config: RunConfig) -> None:
    """Raise InputError unless the checkpoint accepts the images and the control of a job. Reads no file."""
    check_images(
        checkpoint,
        image=config.image is not None,
        last_image=config.last_image is not None,
        control=bool(config.control.files),
        num_frames=config.sampling.num_frames,
    )


def _check_size(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    sampling = config.sampling
    for name, size, patch in (
        ("height", sampling.height, checkpoint.patch_size[1]),
        ("width", sampling.width, checkpoint.patch_size[2]),
    ):
        token = checkpoint.spatial_factor * patch
        step = math.lcm(token, _PIPELINE_MULTIPLE)
        if size % step != 0:
            raise InputError(f"sampling.{name}: expected a multiple of {step}, got {size}; {_nearest(size, step)}")
        if checkpoint.max_positions is not None and size // token > checkpoint.max_positions:
            raise InputError(
                f"sampling.{name}: expected at most {token * checkpoint.max_positions}, the limit of the model's "
                f"positions, got {size}"
            )
    grid, frames = checkpoint.frames, sampling.num_frames
    if grid.most is not None and frames != (nearest := grid.nearest(frames)):
        raise InputError(
            f"sampling.num_frames: expected {grid.first} more than a multiple of {grid.step}, from {grid.nearest(0)} "
            f"to {grid.nearest(grid.most)}, got {frames}; the nearest is {nearest}"
        )
    if not grid.holds(frames):
        raise InputError(
            f"sampling.num_frames: expected {grid.first} more than a multiple of {grid.step}, got {frames}; "
            f"{_nearest(frames, grid.step, grid.first)}"
        )
    if checkpoint.max_positions is not None:
        most = grid.first + grid.step * (checkpoint.max_positions - len(config.control.references) - 1)
        if frames > most:
            raise InputError(
                f"sampling.num_frames: expected at most {most}, the limit of the model's positions, got {frames}"
            )


def _check_control(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    hints, scales = checkpoint.control_layers, config.control.scale
    if hints and len(scales) not in (1, hints):
        raise InputError(
            f"control.scale: expected a number, or {hints}, one for each layer of this checkpoint that takes a hint, "
            f"got {len(scales)}"
        )
    if not hints and set(scales) != {1.0}:
        raise InputError(
            f"control.scale: expected 1 for this checkpoint, which takes no control, got {list(scales)}; leave it out"
        )


def check_sound_rate(config: RunConfig, sound: SoundShape) -> None:
    """Raise InputError if a video with the model's own sound would not have the frame rate that it is made for."""
    if config.output.fps != sound.fps and config.output.audio is None:
        raise InputError(
            f"output.fps: expected {sound.fps}, because this model makes sound for that rate, got {config.output.fps}; "
            "change it, or name another sound in output.audio"
        )


def _check_sound(config: RunConfig, sound: SoundShape) -> None:
    """Check what a model with sound fixes: the frame rate, and the steps, which picture and sound take together."""
    sampling = config.sampling
    check_sound_rate(config, sound)
    for name in ("scheduler", "sigmas"):
        if getattr(sampling, name) is not None:
            raise InputError(
                f"sampling.{name}: expected null for this checkpoint, which has a scheduler for the picture and one "
                f"for the sound, got {getattr(sampling, name)!r}; leave it out"
            )
    if sampling.num_inference_steps < 2:
        raise InputError(
            "sampling.num_inference_steps: expected at least 2 for this checkpoint, whose scheduler counts the end of "
            f"the last step too, got {sampling.num_inference_steps}; change it"
        )


def _check_uncond(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    guidance = config.guidance
    if not checkpoint.has_uncond and guidance.cfg_scales != (1, 1):
        raise InputError(
            "guidance.cfg_scale: expected 1 for this checkpoint, into which guidance is distilled, so that it has no "
            f"uncond pass, got {guidance.cfg_scale:g}; set it to 1 (then D = cond − ω (sub − cond))"
        )


def _check_experts(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    if config.guidance.cfg_scale_2 is not None and checkpoint.boundary_ratio is None:
        raise InputError(
            f"guidance.cfg_scale_2: expected null for a checkpoint with one transformer, got "
            f"{config.guidance.cfg_scale_2:g}; leave it out"
        )
    if not config.model.offload_experts:
        return
    if checkpoint.boundary_ratio is None:
        raise InputError(
            "model.offload_experts: expected a checkpoint with two transformers, got one that is always active; set it "
            "to false, or use parallel.weights streamed to keep its blocks in CPU memory"
        )
    if config.parallel.weights != "replicated":
        raise InputError(
            f"model.offload_experts: needs parallel.weights replicated, because it moves whole transformers, got "
            f"{config.parallel.weights}; set it to false"
            + (" (streamed blocks are in CPU memory anyway)" if config.parallel.weights == "streamed" else "")
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
            f"guidance.drop_count: expected at most {eligible} (of {num_blocks} blocks, without those that never_drop "
            f"and band exclude), got {guidance.drop_count}"
        )


def _check_reuse(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    steps = checkpoint.num_steps(config.sampling)
    if not config.guidance.reuse.spec().is_exact and steps < LEAST_STEPS:
        raise InputError(
            f"guidance.reuse: expected at least {LEAST_STEPS} sampling.num_inference_steps, got {steps}: with so few, "
            "predictions change too much from step to step to be forecast; use more steps, or reuse exact"
        )


def check_lora_weights(config: RunConfig) -> None:
    """Raise InputError if there are LoRAs, and the weights are not placed so that they can be added."""
    if config.model.lora and config.parallel.weights != "replicated":
        raise InputError(
            f"model.lora: needs parallel.weights replicated, got {config.parallel.weights}; set that, or leave the "
            "LoRA out"
        )


def _check_loras(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    from .lora import find_lora, require_peft

    if not checkpoint.takes_lora:
        raise InputError(
            "model.lora: expected none, because diffusers loads no LoRA for this checkpoint's pipeline; leave it out"
        )
    require_peft()
    check_lora_weights(config)
    for lora in config.model.lora:
        if lora.component == "transformer_2" and checkpoint.boundary_ratio is None:
            raise InputError(
                f"model.lora: {lora.path}: expected component transformer for this checkpoint, got "
                f"{lora.component}; change it"
            )
        find_lora(lora.path)

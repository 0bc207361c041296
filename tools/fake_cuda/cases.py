"""Parts of the project to run on a pretended GPU: the conditioning of a published model, and guided steps with it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from s2video.engine.engine import Engine
from s2video.guidance.equations import needs_uncond
from s2video.models.base import Conditioning, ImageConditioning
from s2video.planning.cards import CARDS
from s2video.planning.plan import plan_for
from s2video.planning.step import Step
from s2video.sampling.denoiser import Denoiser
from s2video.sampling.sampler import sample

from .device import GPU
from .published import FakeCheckpoint

# What a step may wait for: place -> reason.
ALLOWED_SYNCS = {
    "sampling/sampler.py:sample": "NaN must end a run at the step that makes it; one number, after the step's work",
    "parallel/collectives.py:any_rank": "ranks agree on whether to stop; one number, after the step's work",
    "models/experts.py:index_at": "Wan 2.2 compares the timestep with its boundary, as diffusers does",
}
# What a step may copy from pageable CPU memory: place -> reason.
ALLOWED_UPLOADS = {
    "schedulers/scheduling_unipc_multistep.py:multistep_uni_p_bh_update": "scalars of diffusers' scheduler",
    "schedulers/scheduling_unipc_multistep.py:multistep_uni_c_bh_update": "scalars of diffusers' scheduler",
    "hunyuan_video/blocks.py:prepare": "the lengths of the prompts, a few numbers",
    "hunyuan_video15/blocks.py:prepare": "the lengths of the prompts, a few numbers",
    "minimax_h3/blocks.py:prepare": "two timesteps",
    "minimax_h3/blocks.py:_angles": "the positions of the rows, once for all steps",
    "schedulers/scheduling_minimax_h3.py:step": "scalars of diffusers' scheduler",
}


def conditioning(checkpoint: FakeCheckpoint, max_sequence_length: int) -> Conditioning:
    """Return the conditioning of a prompt of the longest length, as the family's encoders would give it."""
    config = checkpoint.config("transformer").values
    made = {"dtype": torch.bfloat16, "device": GPU}
    if config["_class_name"] == "MiniMaxH3Transformer3DModel":
        text = torch.empty(1, max_sequence_length, config["text_dim"], **made)
        return Conditioning(text, text_lengths=(max_sequence_length,))
    if config["_class_name"] in ("WanTransformer3DModel", "WanVACETransformer3DModel"):
        return Conditioning(torch.empty(1, max_sequence_length, config["text_dim"], **made))
    length = max_sequence_length + (140 if config.get("image_condition_type") == "token_replace" else 0)
    text = torch.empty(1, length, config["text_embed_dim"], **made)
    if config["_class_name"] == "HunyuanVideoTransformer3DModel":
        pooled = torch.empty(1, config["pooled_projection_dim"], **made)
        return Conditioning(text, text_lengths=(length,), pooled=pooled, guidance=6.0)
    glyphs = torch.empty(1, 256, config["text_embed_2_dim"], **made)
    return Conditioning(text, text_lengths=(length,), text_2=glyphs, text_2_lengths=(256,))


def image_conditioning(checkpoint: FakeCheckpoint, latents: Tensor) -> ImageConditioning:
    """Return what images of this checkpoint fix, of the shapes that its family's encoders would give."""
    config = checkpoint.config("transformer").values
    family, info = checkpoint.family, checkpoint.info
    _, channels, *shape = latents.shape
    if config["_class_name"] == "HunyuanVideo15Transformer3DModel" and info.image == "none":
        return family.image_conditioning(latents)
    if info.control_layers:
        control = torch.empty(1, config["vace_in_channels"], *shape, device=GPU)
        scales = torch.empty(info.control_layers, dtype=torch.bfloat16, device=GPU)
        return replace(family.image_conditioning(latents, control), control_scales=scales)
    if info.image == "none":
        return ImageConditioning()
    if config["_class_name"] == "HunyuanVideoTransformer3DModel" or info.time_per_token:
        return family.image_conditioning(latents, torch.empty(1, channels, 1, *shape[1:], device=GPU))
    encoded = [torch.empty(1, config["in_channels"] - channels, *shape, device=GPU)]
    if config["_class_name"] == "HunyuanVideo15Transformer3DModel":
        features = torch.empty(1, 729, config["image_embed_dim"], dtype=torch.bfloat16, device=GPU)
        return family.image_conditioning(latents, features, encoded[0])
    if config.get("image_dim") is not None:
        num_images = 2 if info.last_image == "required" else 1
        encoded.append(torch.empty(1, 257 * num_images, config["image_dim"], device=GPU))
    return family.image_conditioning(latents, *encoded)


def denoiser(engine: Engine) -> tuple[Denoiser, Tensor]:
    """Return the engine's denoiser for a prompt of the longest length, and the initial latents."""
    checkpoint: Any = engine.checkpoint
    config = engine.config
    latents = engine._noise([0])
    cond = conditioning(checkpoint, config.sampling.max_sequence_length)
    made = Denoiser(
        engine._experts,
        engine.mesh,
        config.guidance,
        dtype=torch.float32 if engine._family.takes_float32 else engine._dtype,
        masks=engine.mask_schedule([0]),
        cond=cond,
        uncond=cond if any(map(needs_uncond, config.guidance.cfg_scales)) else None,
        images=image_conditioning(checkpoint, latents),
    )
    return made, latents


def guided_steps(engine: Engine, num_steps: int = 2) -> Callable[[], Tensor]:
    """Return a function that runs the sampler's loop over steps in the middle of the schedule, where S² is on."""
    denoise, latents = denoiser(engine)
    scheduler = engine._timed_scheduler()
    first = len(scheduler.timesteps) // 2
    scheduler.timesteps = scheduler.timesteps[: first + num_steps]
    scheduler.set_begin_index(first)
    return partial(sample, denoise, latents, scheduler, first_step=first)


def unexpected(counts: dict[str, int], allowed: dict[str, str]) -> dict[str, int]:
    """Return the entries, "item() at PLACE" or "PLACE", whose place is not allowed."""
    return {name: count for name, count in counts.items() if name.split(" at ")[-1] not in allowed}


def planned(engine: Engine, world_size: int) -> Step:
    """Return the plan's step for the engine's config, with as many blocks as its transformers have."""
    return plan_for(engine.config, world_size, CARDS["H100"], engine.checkpoint, is_published=True).step


def decode(engine: Engine, num_chunks: int | None = None) -> Callable[[], int]:
    """Return a function that decodes a video of the engine's size and returns its number of chunks.

    Args:
        num_chunks: end after so many; None for the whole video.
    """
    info, shape = engine.checkpoint.info, engine.latent_shape
    latents = torch.empty(1, info.latent_channels, shape.frames, shape.height, shape.width, device=GPU)
    decoder = engine._decoders.of(shape)

    def run() -> int:
        # without the agreement of ranks after each chunk, which asks for values
        return sum(1 for _ in islice(decoder._chunks(latents), num_chunks))

    return run

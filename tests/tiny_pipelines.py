"""Pipelines in miniature: random weights, texts of different lengths. `tiny_models.py` has the others."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
)
from PIL import Image
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, SIZE, build_transformer, random_lora
from torch import Tensor

WIDTH, WIDTH_2, IMAGE_WIDTH = 16, 10, 8  # of the embeddings of both texts and of the image


def build_hunyuan_video_15(task: str = "t2v") -> tuple[Any, dict[str, Any]]:
    """A pipeline for `task`, t2v or i2v, of six blocks, and the arguments of its call."""
    torch.manual_seed(1)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=6,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH_2,
        image_embed_dim=IMAGE_WIDTH,
        rope_axes_dim=(4, 4, 4),
        target_size=64,
        task_type=task,
    ).eval()
    components = {
        "transformer": transformer,
        "vae": AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "guider": ClassifierFreeGuidance(5.0),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    }
    arguments = {**texts(), "num_frames": 5}
    if task == "t2v":
        return HunyuanVideo15Pipeline(**components), {**arguments, "height": 64, "width": 96}
    pipe = HunyuanVideo15ImageToVideoPipeline(**components, image_encoder=None, feature_extractor=None)
    seen = torch.randn(1, 3, IMAGE_WIDTH)
    pipe._get_image_embeds = lambda **_: seen
    return pipe, {**arguments, "image": Image.new("RGB", (96, 64), (200, 90, 30))}


def texts() -> dict[str, Tensor]:
    """Embeddings and masks of both encoders, of a prompt and of a shorter negative prompt."""
    generator = torch.Generator().manual_seed(3)
    made: dict[str, Tensor] = {}
    for name, lengths in (("prompt", (7, 3)), ("negative_prompt", (5, 0))):
        for suffix, width, room, length in (("", WIDTH, 7, lengths[0]), ("_2", WIDTH_2, 4, lengths[1])):
            made[f"{name}_embeds{suffix}"] = torch.randn(1, room, width, generator=generator)
            made[f"{name}_embeds_mask{suffix}"] = (torch.arange(room) < length).long()[None]
    return made


def wan(folder: Path) -> tuple[DiffusionPipeline, dict[str, Any]]:
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    return pipe, {"prompt": PROMPT, "max_sequence_length": MAX_SEQUENCE_LENGTH, "guidance_scale": 5.0, **SIZE}


def wan_with_two_transformers(folder: Path) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """As Wan 2.2 A14B: below the boundary, here always, the second one is called."""
    pipe, arguments = wan(folder)
    second = build_transformer(seed=1)
    return WanPipeline(**{**pipe.components, "transformer_2": second}, boundary_ratio=1.0), arguments


def wan_with_lora(folder: Path) -> tuple[DiffusionPipeline, dict[str, Any]]:
    pipe, arguments = wan(folder)
    pipe.transformer.load_lora_adapter(random_lora(pipe.transformer))
    return pipe, arguments


def hunyuan_video() -> tuple[DiffusionPipeline, dict[str, Any]]:
    torch.manual_seed(1)
    transformer = HunyuanVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=4,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
    )
    pipe = HunyuanVideoPipeline(None, None, transformer.eval(), None, FlowMatchEulerDiscreteScheduler(), None, None)
    generator = torch.Generator().manual_seed(3)
    return pipe, {
        "prompt_embeds": torch.randn(1, 7, 16, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 8, generator=generator),
        "prompt_attention_mask": torch.ones(1, 7, dtype=torch.bool),
        "height": 64,
        "width": 96,
        "num_frames": 9,
    }


def flux() -> tuple[DiffusionPipeline, dict[str, Any]]:
    torch.manual_seed(1)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), image_vae(), None, None, None, None, transformer.eval())
    return pipe, {
        **image_texts(),
        "true_cfg_scale": 3.0,
        "height": 64,
        "width": 48,
    }


def stable_diffusion_3() -> tuple[DiffusionPipeline, dict[str, Any]]:
    torch.manual_seed(1)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
    )
    nothing = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    pipe = StableDiffusion3Pipeline(transformer.eval(), FlowMatchEulerDiscreteScheduler(), image_vae(), **nothing)
    return pipe, {
        **image_texts(),
        "guidance_scale": 4.0,
        "height": 64,
        "width": 48,
    }


def image_texts() -> dict[str, Tensor]:
    """Embeddings and pooled ones of a prompt and a negative prompt."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"prompt": (1, 6, 12), "negative_prompt": (1, 6, 12), "pooled_prompt": (1, 8)}
    shapes["negative_pooled_prompt"] = (1, 8)
    return {f"{name}_embeds": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def image_vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(4,) * 4,
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


BUILDERS = {build.__name__: build for build in (wan, wan_with_two_transformers, wan_with_lora)}

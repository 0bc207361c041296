"""HunyuanVideo 1.5 in miniature as diffusers' own pipelines run it: random weights, texts of different lengths."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from PIL import Image
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

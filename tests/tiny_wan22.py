"""Wan 2.2's text-to-video checkpoints in miniature: A14B with its two transformers, and TI2V 5B, with or without image.

TI2V 5B's real checkpoint names `WanPipeline`; others name `WanImageToVideoPipeline`, and either is one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from shapes.caption_encoder import build_tokenizer
from tiny import (
    MAX_SEQUENCE_LENGTH,
    RESIDUAL_Z_DIM,
    build_scheduler,
    build_transformer,
    build_vae,
    conditioning,
    tiny_config,
    tiny_text_encoder,
)
from tiny_wan_i2v import image
from torch import Tensor

from s2video.config.run import RunConfig, build_config
from s2video.models.base import Conditioning
from s2video.models.images import Images

BOUNDARY_RATIO = 0.875  # two of six steps lie above
TI2V_SIZE = {"width": 224, "height": 160, "num_frames": 17}  # latents 5 x 10 x 14, tokens 5 x 5 x 7


def build_a14b(folder: Path) -> Path:
    WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=build_vae(),
        scheduler=build_scheduler(),
        transformer=build_transformer(),
        transformer_2=build_transformer(seed=1),
        boundary_ratio=BOUNDARY_RATIO,
    ).save_pretrained(folder)
    return folder


def a14b_config(checkpoint: Path, **guidance: Any) -> RunConfig:
    """Diffusers makes an uncond pass for both transformers or for none."""
    second = {} if guidance.get("cfg_scale") == 1 else {"cfg_scale_2": 2.0}
    return tiny_config(checkpoint, **{**second, **guidance})


@dataclass(frozen=True)
class TextImageToVideo:
    """TI2V 5B, its checkpoint being that of `pipeline`."""

    pipeline: type[WanPipeline] | type[WanImageToVideoPipeline]
    images: Images | None = None

    def build_checkpoint(self, folder: Path) -> Path:
        self.pipeline(
            tokenizer=build_tokenizer(),
            text_encoder=tiny_text_encoder(),
            vae=build_vae(residual=True),
            scheduler=build_scheduler(),
            transformer=build_transformer(channels=RESIDUAL_Z_DIM),
            expand_timesteps=True,
        ).save_pretrained(folder)
        return folder

    def config(self, checkpoint: Path, **guidance: Any) -> RunConfig:
        return build_config(
            {
                "model": {"path": str(checkpoint), "device": "cpu"},
                "sampling": {**TI2V_SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
                "guidance": {"drop_ratio": 0.3, "window": (0.2, 0.8), **guidance},
            }
        )

    def reference(self, checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int) -> Tensor:
        kind, images = (WanImageToVideoPipeline, (self.images.first,)) if self.images else (WanPipeline, ())
        pipeline = kind.from_pretrained(checkpoint, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            *images,
            prompt,
            negative,
            **TI2V_SIZE,
            num_inference_steps=config.sampling.num_inference_steps,
            guidance_scale=config.guidance.cfg_scale,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=config.sampling.max_sequence_length,
            output_type="latent",
        ).frames

    def conditioning(self, transformer: WanTransformer3DModel, seed: int) -> Conditioning:
        return Conditioning(conditioning(transformer, seed).text, given_frames=1 if self.images else 0)


def forward(transformer: WanTransformer3DModel, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
    """With a time for each token, 0 where its frame is given."""
    noisy = torch.ones(latents.shape[2:])
    noisy[: told.given_frames] = 0
    times = timestep[:, None] * noisy[:, ::2, ::2].flatten()
    return transformer(latents, times, told.text, return_dict=False)[0]


TI2V = {
    "wan2.2-ti2v": TextImageToVideo(WanPipeline),
    "wan2.2-ti2v, with an image": TextImageToVideo(
        WanImageToVideoPipeline, Images(image(1, (TI2V_SIZE["width"], TI2V_SIZE["height"])))
    ),
}

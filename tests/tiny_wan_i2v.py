"""Wan's image-to-video checkpoints in miniature: as Wan 2.1, as the one for first and last frames, as Wan 2.2.

They differ in what they are told of the images: features of the first, of both, or none beside the latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from shapes.caption_encoder import build_tokenizer
from tiny import NUM_BLOCKS, SIZE, build_scheduler, build_vae, tiny_text_encoder
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from s2video.config.run import RunConfig, build_config
from s2video.models.base import Conditioning
from s2video.models.images import Images

MAX_SEQUENCE_LENGTH = 512  # where there are image tokens, diffusers' cross-attention counts on this number
PIXELS, PATCH, IMAGE_DIM = 28, 14, 24
IMAGE_TOKENS = (PIXELS // PATCH) ** 2 + 1
TEXT_DIM = 128


def image(seed: int, size: tuple[int, int] = (SIZE["width"], SIZE["height"])) -> Image.Image:
    """A coarse pattern of colours, [H, W, RGB]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(coarse.numpy()).resize(size, Image.Resampling.BICUBIC)


def build_image_encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=PATCH,
        projection_dim=16,
        initializer_factor=10.0,  # or all pictures would look alike
    )
    return CLIPVisionModelWithProjection(config).eval()


@dataclass(frozen=True)
class Kind:
    """One of the three kinds of checkpoint. `num_features`: images whose features the transformer sees."""

    num_features: int
    images: Images
    boundary_ratio: float | None = None

    def build_transformer(self, seed: int = 0) -> WanTransformer3DModel:
        torch.manual_seed(seed)
        sees = {"image_dim": IMAGE_DIM, "added_kv_proj_dim": 60} if self.num_features else {}
        model = WanTransformer3DModel(
            num_attention_heads=5,
            attention_head_dim=12,
            in_channels=36,
            out_channels=16,
            text_dim=TEXT_DIM,
            freq_dim=32,
            ffn_dim=96,
            num_layers=NUM_BLOCKS,
            rope_max_seq_len=64,
            pos_embed_seq_len=2 * IMAGE_TOKENS if self.num_features == 2 else None,
            **sees,
        )
        if self.num_features == 2:
            torch.nn.init.normal_(model.condition_embedder.image_embedder.pos_embed)
        return model.eval().requires_grad_(False)

    def build_checkpoint(self, folder: Path) -> Path:
        """model_index.json names an image encoder with projection, as those of the real checkpoints do."""
        processor = CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS})
        pipeline = WanImageToVideoPipeline(
            tokenizer=build_tokenizer(),
            text_encoder=tiny_text_encoder(),
            vae=build_vae(),
            scheduler=build_scheduler(),
            transformer=self.build_transformer(),
            transformer_2=self.build_transformer(seed=1) if self.boundary_ratio else None,
            boundary_ratio=self.boundary_ratio,
            image_encoder=build_image_encoder() if self.num_features else None,
            image_processor=processor if self.num_features else None,
        )
        if self.num_features:
            pipeline.register_to_config(image_processor=("transformers", "CLIPImageProcessor"))
        pipeline.save_pretrained(folder)
        return folder

    def config(self, checkpoint: Path, **guidance: Any) -> RunConfig:
        return build_config(
            {
                "model": {"path": str(checkpoint), "device": "cpu"},
                "sampling": {**SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
                "guidance": {"drop_ratio": 0.3, "window": (0.2, 0.8), **guidance} | self._second_scale(guidance),
            }
        )

    def _second_scale(self, guidance: Mapping[str, Any]) -> dict[str, float]:
        """Diffusers makes an uncond pass for both transformers or for none."""
        return {"cfg_scale_2": 2.0} if self.boundary_ratio and guidance.get("cfg_scale") != 1 else {}

    def reference(self, checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int) -> Tensor:
        pipeline = WanImageToVideoPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            self.images.first,
            prompt,
            negative,
            last_image=self.images.last,
            **SIZE,
            num_inference_steps=config.sampling.num_inference_steps,
            guidance_scale=config.guidance.cfg_scale,
            guidance_scale_2=config.guidance.cfg_scale_2,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=config.sampling.max_sequence_length,
            output_type="latent",
        ).frames

    def conditioning(self, transformer: WanTransformer3DModel, seed: int) -> Conditioning:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(2, MAX_SEQUENCE_LENGTH, TEXT_DIM, generator=generator)
        features = torch.randn(2, self.num_features * IMAGE_TOKENS, IMAGE_DIM, generator=generator)
        return Conditioning(text, image=features if self.num_features else None)


def forward(transformer: WanTransformer3DModel, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
    features = told.image
    if features is not None:  # the pipeline keeps the images of a video one after the other
        features = features.reshape(-1, IMAGE_TOKENS, IMAGE_DIM)
    return transformer(latents, timestep, told.text, features, return_dict=False)[0]


KINDS = {
    "wan-i2v": Kind(1, Images(image(1))),
    "wan-flf2v": Kind(2, Images(image(1), image(2))),
    "wan2.2-i2v": Kind(0, Images(image(1), image(2)), boundary_ratio=0.9),
}

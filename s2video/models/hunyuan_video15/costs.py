"""Costs of HunyuanVideo 1.5's transformer, from config.json. Dimension letters as in `models.costs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..costs import Work, linear
from ..hunyuan_video.costs import JointAttention

_GLYPH_WIDTH = 2048  # width of the layers between the glyphs' embeddings and the model


@dataclass(frozen=True)
class HunyuanVideo15Costs(JointAttention):
    """Costs of `HunyuanVideo15Transformer3DModel`: dual blocks only. Text is the prompt, glyph text and image tokens.

    Attributes:
        num_glyphs, num_image: largest numbers of glyph and image tokens in the pipelines.
    """

    num_dual: int
    num_refiner: int
    num_heads: int
    head_dim: int
    mlp_ratio: float
    text_dim: int
    glyph_dim: int
    image_dim: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]
    num_glyphs: int
    num_image: int
    token_replace = False
    num_single = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HunyuanVideo15Costs:
        """Read a config.json. Missing keys have the defaults of diffusers' constructor."""
        channels, patch = config.get("in_channels", 65), config.get("patch_size", 1)
        return cls(
            num_dual=config.get("num_layers", 54),
            num_refiner=config.get("num_refiner_layers", 2),
            num_heads=config.get("num_attention_heads", 16),
            head_dim=config.get("attention_head_dim", 128),
            mlp_ratio=config.get("mlp_ratio", 4.0),
            text_dim=config.get("text_embed_dim", 3584),
            glyph_dim=config.get("text_embed_2_dim", 1472),
            image_dim=config.get("image_embed_dim", 1152),
            in_channels=channels,
            out_channels=config.get("out_channels", 32) or channels,
            patch_size=(config.get("patch_size_t", 1), patch, patch),
            num_glyphs=256,
            num_image=729 if config.get("task_type", "i2v") == "i2v" else 0,
        )

    @property
    def num_blocks(self) -> int:
        return self.num_dual

    def num_text(self, max_sequence_length: int) -> int:
        return max_sequence_length + self.num_glyphs + self.num_image

    def embed(self, tokens: int, num_text: int) -> Work:
        """Return the FLOPs of patches, timestep (twice), pooled prompt, refiner, three glyph and two image layers."""
        width, glyphs, image = self.width, self.glyph_dim, self.image_dim
        refined = self.refine(num_text - self.num_glyphs - self.num_image)
        patches = tokens * math.prod(self.patch_size) * self.in_channels
        linear = width * (patches + 2 * (256 + width) + self.text_dim + width)
        linear += self.num_glyphs * _GLYPH_WIDTH * (glyphs + _GLYPH_WIDTH + width)
        linear += self.num_image * image * (image + width)
        return refined._replace(linear=refined.linear + 2 * linear)

    def root_parameters(self) -> int:
        width, glyphs, image = self.width, self.glyph_dim, self.image_dim
        vectors = 2 * linear(256, width) + 3 * linear(width, width) + linear(self.text_dim, width) + 3 * width
        text_2 = 2 * glyphs + linear(glyphs, _GLYPH_WIDTH) + linear(_GLYPH_WIDTH, _GLYPH_WIDTH)
        text_2 += linear(_GLYPH_WIDTH, width)
        images = 2 * image + linear(image, image) + linear(image, width) + 2 * width
        patches = linear(math.prod(self.patch_size) * self.in_channels, width)
        output = linear(width, 2 * width) + linear(width, self.patch_channels)
        return patches + vectors + self.refiner_parameters() + text_2 + images + output

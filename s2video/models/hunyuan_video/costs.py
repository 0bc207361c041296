"""Costs of HunyuanVideo's transformers, from config.json. Dimension letters as in `models.costs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..costs import Derived, Share, Work, linear


class JointAttention(Derived):
    """Costs that both versions of HunyuanVideo share: dual blocks, then single ones, with joint attention.

    Attributes:
        token_replace: whether the tokens of the image's frame have their own timestep, and so their own modulation.
    """

    token_replace: bool
    num_dual: int
    mlp_ratio: float
    num_refiner: int
    text_dim: int
    joint_text = True
    time_per_token = False

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    def refine(self, num_text: int) -> Work:
        """Return the FLOPs of the prompt's projection and its refiner, whose feed-forward is 4·D wide."""
        width = self.width
        each = num_text * (4 * width + 8 * width) + 2 * width
        return Work(
            linear=2 * width * (num_text * self.text_dim + self.num_refiner * each),
            attention=self.num_refiner * 4 * num_text**2 * width,
        )

    def refiner_parameters(self) -> int:
        width = self.width
        each = 4 * width + 4 * linear(width, width) + linear(width, 2 * width)
        each += linear(width, 4 * width) + linear(4 * width, width)
        return linear(self.text_dim, width) + self.num_refiner * each

    def block(self, index: int, share: Share, num_text: int) -> Work:
        """Return the FLOPs of Q, K, V, out and feed-forward of both streams, and of attention.

        The text's queries attend to the keys that a ring group holds and to the text's own.
        """
        width = self.width
        modulation = 12 + 6 * self.token_replace if index < self.num_dual else 3 + 3 * self.token_replace
        video, text = share.group * (share.total + num_text), num_text * (share.group + num_text)
        return Work(
            linear=2 * width * ((share.tokens + num_text) * (4 * width + 2 * self.mlp_width) + modulation * width),
            exchanged=4 * (video + text) * share.heads * self.head_dim,
        )

    def project(self, tokens: int) -> Work:
        return Work(2 * self.width * (tokens * self.patch_channels + 2 * self.width))

    def block_parameters(self, index: int) -> int:
        width, mlp = self.width, self.mlp_width
        if index < self.num_dual:
            stream = linear(width, 6 * width) + 4 * linear(width, width) + 2 * self.head_dim
            return 2 * (stream + linear(width, mlp) + linear(mlp, width))
        attention = 3 * linear(width, width) + 2 * self.head_dim
        return attention + linear(width, 3 * width) + linear(width, mlp) + linear(width + mlp, width)


@dataclass(frozen=True)
class HunyuanVideoCosts(JointAttention):
    """Costs of `HunyuanVideoTransformer3DModel`: dual blocks, then single ones, all with joint attention."""

    num_dual: int
    num_single: int
    num_refiner: int
    num_heads: int
    head_dim: int
    mlp_ratio: float
    text_dim: int
    pooled_dim: int
    guidance_embeds: bool
    token_replace: bool
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HunyuanVideoCosts:
        """Read a config.json. Missing keys have the defaults of diffusers' constructor."""
        channels, patch = config.get("in_channels", 16), config.get("patch_size", 2)
        return cls(
            num_dual=config.get("num_layers", 20),
            num_single=config.get("num_single_layers", 40),
            num_refiner=config.get("num_refiner_layers", 2),
            num_heads=config.get("num_attention_heads", 24),
            head_dim=config.get("attention_head_dim", 128),
            mlp_ratio=config.get("mlp_ratio", 4.0),
            text_dim=config.get("text_embed_dim", 4096),
            pooled_dim=config.get("pooled_projection_dim", 768),
            guidance_embeds=config.get("guidance_embeds", True),
            token_replace=config.get("image_condition_type") == "token_replace",
            in_channels=channels,
            out_channels=config.get("out_channels") or channels,
            patch_size=(config.get("patch_size_t", 1), patch, patch),
        )

    @property
    def num_blocks(self) -> int:
        return self.num_dual + self.num_single

    def num_text(self, max_sequence_length: int) -> int:
        """Return M. An image adds every fourth of its 576 tokens before cond's text, minus four of the template's."""
        return max_sequence_length + (576 // 4 - 4 if self.token_replace else 0)

    def embed(self, tokens: int, num_text: int) -> Work:
        """Return the FLOPs of patches, three to five small vectors (a timestep has 256 sinusoids), and the refiner."""
        width = self.width
        timesteps = (2 + self.guidance_embeds + self.token_replace) * (256 + width)
        pooled = self.text_dim + self.pooled_dim + 2 * width
        patches = tokens * math.prod(self.patch_size) * self.in_channels
        refined = self.refine(num_text)
        return refined._replace(linear=refined.linear + 2 * width * (patches + timesteps + pooled))

    def root_parameters(self) -> int:
        width = self.width
        timestep = linear(256, width) + linear(width, width)
        vectors = (3 if self.guidance_embeds else 2) * timestep
        vectors += sum(linear(dim, width) + linear(width, width) for dim in (self.text_dim, self.pooled_dim))
        patches = linear(math.prod(self.patch_size) * self.in_channels, width)
        output = linear(width, 2 * width) + linear(width, self.patch_channels)
        return patches + vectors + self.refiner_parameters() + output

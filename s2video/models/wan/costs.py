"""Costs of Wan's transformers, from config.json. Dimension letters as in `models.costs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..costs import Derived, Share, Work, linear

_TOKENS_PER_IMAGE = 257  # 16 x 16 and a class token of CLIP ViT-H/14 at 224 pixels, Wan's only image encoder


@dataclass(frozen=True)
class WanCosts(Derived):
    """Costs of `WanTransformer3DModel`, from text or with images.

    Attributes:
        image_dim: D_image of the image encoder's features; 0 without an image encoder.
        num_images: number of images whose features the transformer gets, 0 … 2.
    """

    num_blocks: int
    num_heads: int
    head_dim: int
    mlp_width: int
    text_dim: int
    freq_dim: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]
    cross_attn_norm: bool
    time_per_token: bool
    image_dim: int
    num_images: int
    joint_text = False
    num_single = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanCosts:
        """Read a config.json. Missing keys have the defaults of diffusers' constructor.

        `expand_timesteps` is a key of the pipeline's model_index.json, which the caller merges into `config`.
        """
        channels = config.get("in_channels", 16)
        return cls(
            num_blocks=config.get("num_layers", 40),
            num_heads=config.get("num_attention_heads", 40),
            head_dim=config.get("attention_head_dim", 128),
            mlp_width=config.get("ffn_dim", 13824),
            text_dim=config.get("text_dim", 4096),
            freq_dim=config.get("freq_dim", 256),
            in_channels=channels,
            out_channels=config.get("out_channels") or channels,
            patch_size=tuple(config.get("patch_size", (1, 2, 2))),
            cross_attn_norm=config.get("cross_attn_norm", True),
            time_per_token=bool(config.get("expand_timesteps", False)),
            image_dim=config.get("image_dim") or 0,
            num_images=0 if config.get("image_dim") is None else 1 if config.get("pos_embed_seq_len") is None else 2,
        )

    @property
    def num_image_tokens(self) -> int:
        return _TOKENS_PER_IMAGE * self.num_images

    def embed(self, tokens: int, num_text: int) -> Work:
        """Return the FLOPs of the embedders.

        Patches of L_local tokens; the timestep, once or per token, with its modulation of 6·D; text and image features,
        two layers each.
        """
        width = self.width
        patches = tokens * math.prod(self.patch_size) * self.in_channels
        time = (self.freq_dim + 7 * width) * (tokens if self.time_per_token else 1)
        images = self.num_image_tokens * self.image_dim * (self.image_dim + width)
        return Work(2 * width * (patches + time + num_text * (self.text_dim + width)) + 2 * images)

    def block(self, index: int, share: Share, num_text: int) -> Work:
        """Return the FLOPs of a block.

        Linear: Q, K, V, out of self-attention, Q and out of cross-attention, feed-forward, and K and V of text and
        images.
        """
        width, tokens, num_attended = self.width, share.tokens, num_text + self.num_image_tokens
        return Work(
            linear=2 * width * (tokens * (6 * width + 2 * self.mlp_width) + num_attended * 2 * width),
            attention=4 * tokens * num_attended * width,
            exchanged=4 * share.group * share.total * share.heads * self.head_dim,
        )

    def project(self, tokens: int) -> Work:
        return Work(2 * tokens * self.width * self.patch_channels)

    def block_parameters(self, index: int) -> int:
        width, mlp = self.width, self.mlp_width
        attention = 4 * linear(width, width) + 2 * width  # with the norms of Q and K
        norms_and_tables = (2 * width if self.cross_attn_norm else 0) + 6 * width
        image_layers = 2 * linear(width, width) + width if self.num_images else 0
        return 2 * attention + image_layers + linear(width, mlp) + linear(mlp, width) + norms_and_tables

    def root_parameters(self) -> int:
        width = self.width
        embedders = (
            linear(math.prod(self.patch_size) * self.in_channels, width)
            + linear(self.freq_dim, width)
            + linear(width, width)
            + linear(width, 6 * width)
            + linear(self.text_dim, width)
            + linear(width, width)
        )
        if self.num_images:
            image_dim, norms = self.image_dim, 2 * (self.image_dim + width)
            embedders += linear(image_dim, image_dim) + linear(image_dim, width) + norms
        if self.num_images == 2:
            embedders += self.num_image_tokens * self.image_dim  # position embedding of first and last image
        return embedders + linear(width, self.patch_channels) + 2 * width

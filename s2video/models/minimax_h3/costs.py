"""Costs of MiniMax-H3's transformer, from config.json. Dimension letters as in `models.costs`.

Tokens are the rows of picture and sound. A row of sound is narrower than a patch; both count as patches here, which is
0.01 % of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..costs import Derived, Share, Work, linear

NUM_TIMESTEPS = 2  # of picture and sound
NUM_MODALITIES = 3  # picture, text and sound have modulations of their own


@dataclass(frozen=True)
class MiniMaxH3Costs(Derived):
    """Costs of `MiniMaxH3Transformer3DModel`: attention over text, sound and picture, whose heads are wider than D.

    Attributes:
        inner: width of all heads together.
    """

    num_blocks: int
    num_refiner: int
    num_heads: int
    head_dim: int
    hidden: int
    ffn_dim: int
    text_dim: int
    freq_dim: int
    time_hidden_dim: int
    time_dim: int
    sound_channels: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, int, int]
    joint_text = True
    num_single = 0
    time_per_token = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MiniMaxH3Costs:
        """Read a config.json. Missing keys have the defaults of diffusers' constructor."""
        channels = config.get("in_channels", 24)
        return cls(
            num_blocks=config.get("num_layers", 50),
            num_refiner=config.get("num_refiner_layers", 2),
            num_heads=config.get("num_attention_heads", 56),
            head_dim=config.get("attention_head_dim", 128),
            hidden=config.get("hidden_size", 5376),
            ffn_dim=config.get("ffn_dim", 14336),
            text_dim=config.get("text_dim", 5120),
            freq_dim=config.get("freq_dim", 256),
            time_hidden_dim=config.get("time_embed_hidden_dim", 5376),
            time_dim=config.get("time_embed_dim", 2688),
            sound_channels=config.get("audio_in_channels", 32),
            in_channels=channels,
            out_channels=channels,
            patch_size=tuple(config.get("patch_size", (1, 2, 2))),
        )

    @property
    def inner(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def width(self) -> int:
        return self.hidden

    @property
    def mlp_width(self) -> int:
        """Return the width of the feed-forward's first layer: values, and the gates that multiply them."""
        return 2 * self.ffn_dim

    def _row(self) -> int:
        """Multiply-adds of a row in a block: Q, K, V, out, and the three matrices of the feed-forward."""
        return self.width * (4 * self.inner + 3 * self.ffn_dim)

    def embed(self, tokens: int, num_text: int) -> Work:
        """Return the FLOPs of patches, timesteps, the text and its refiner; and of the text's rows in the output."""
        times = NUM_TIMESTEPS * self.time_hidden_dim * (self.freq_dim + self.time_dim)
        text = num_text * (self.text_dim * self.width + self.num_refiner * self._row())
        output = num_text * self.width * (self.patch_channels + self.sound_channels)
        patches = tokens * math.prod(self.patch_size) * self.in_channels * self.width
        return Work(
            linear=2 * (patches + times + text + output),
            attention=self.num_refiner * 4 * num_text**2 * self.inner,
        )

    def block(self, index: int, share: Share, num_text: int) -> Work:
        """Return the FLOPs of a block; the text's queries attend to the keys of a ring group and to the text's."""
        modulation = NUM_TIMESTEPS * self.time_dim * 6 * NUM_MODALITIES * self.width
        rows, text = share.group * (share.total + num_text), num_text * (share.group + num_text)
        return Work(
            linear=2 * ((share.tokens + num_text) * self._row() + modulation),
            exchanged=4 * (rows + text) * share.heads * self.head_dim,
        )

    def project(self, tokens: int) -> Work:
        heads = self.patch_channels + self.sound_channels
        return Work(2 * self.width * (tokens * heads + NUM_TIMESTEPS * 2 * self.time_dim))

    def _layer_parameters(self) -> int:
        """Two norms of rows and two of heads, attention, and feed-forward."""
        return 2 * self.width + 2 * self.head_dim + self._row()

    def block_parameters(self, index: int) -> int:
        return self._layer_parameters() + linear(self.time_dim, 6 * NUM_MODALITIES * self.width)

    def root_parameters(self) -> int:
        width, patch = self.width, math.prod(self.patch_size) * self.in_channels
        inputs = sum(linear(dim, width) for dim in (patch, self.sound_channels, self.text_dim))
        times = linear(self.freq_dim, self.time_hidden_dim) + linear(self.time_hidden_dim, self.time_dim)
        refiner = self.num_refiner * self._layer_parameters() + width
        output = width + linear(self.time_dim, 2 * width)
        output += linear(width, self.patch_channels) + linear(width, self.sound_channels)
        return inputs + times + refiner + output

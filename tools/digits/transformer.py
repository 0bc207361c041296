"""A class-conditional diffusion transformer for 28x28 images, in the manner of Wan's: one modulation for all blocks.

Any block can be left out, as the sub pass of S² needs it. Dimension letters: B samples, T = 16 tokens, D width.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import CLASSES, SIDE

PATCH = 7
TOKENS = (SIDE // PATCH) ** 2
NO_CLASS = CLASSES  # the label of the uncond pass
_HEAD = 16  # width of an attention head
_FREQUENCIES = 32


@dataclass(frozen=True)
class Shape:
    """Number of blocks and width of a network; a multiple of 16."""

    blocks: int = 12
    width: int = 48


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift_scale_gate = nn.Parameter(torch.randn(6, width) / math.sqrt(width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = width // _HEAD

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Return [B, T, D] for x [B, T, D] and the modulation [B, 6, D] of time and class."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.shift_scale_gate).unsqueeze(2).unbind(1)
        width = x.shape[-1]
        h = F.layer_norm(x, (width,)) * (1 + scale_a) + shift_a
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, _HEAD)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate_a * self.out(attended)
        h = F.layer_norm(x, (width,)) * (1 + scale_m) + shift_m
        return x + gate_m * self.down(F.gelu(self.up(h), approximate="tanh"))


class DigitTransformer(nn.Module):
    """Predicts the velocity ε − x₀ of x_t = (1 − t) x₀ + t ε."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, width = shape, shape.width
        self.embed = nn.Linear(PATCH * PATCH, width)
        self.position = nn.Parameter(torch.randn(TOKENS, width) * 0.1)
        self.classes = nn.Embedding(CLASSES + 1, width)
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(shape.blocks))
        self.project = nn.Linear(width, PATCH * PATCH)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, dropped: Collection[int] = ()) -> Tensor:
        """Return the velocity [B, 1, 28, 28].

        Args:
            x: [B, 1, 28, 28].
            t: [B], the noise level in [0, 1].
            labels: [B], in [0, 10]; 10 is no class.
            dropped: indices of blocks to leave out.
        """
        side = SIDE // PATCH
        tokens = x.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, TOKENS, PATCH * PATCH)
        state = self.embed(tokens) + self.position
        angles = 1000 * t[:, None] * torch.exp(-math.log(1e4) * torch.arange(_FREQUENCIES) / _FREQUENCIES)
        time = self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.classes(labels)
        modulation = self.modulate(time).unflatten(1, (6, -1))
        for index, block in enumerate(self.blocks):
            if index not in dropped:
                state = block(state, modulation)
        patches = self.project(F.layer_norm(state, (state.shape[-1],)))
        return patches.reshape(-1, side, side, PATCH, PATCH).transpose(2, 3).reshape(x.shape)

"""A class-conditional diffusion transformer for 16x16 images, in the manner of Wan's: one modulation for all blocks.

Any block can be left out, as the sub pass of S² needs it. Dimension letters: B samples, T = 16 tokens, D width.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import CLASSES, SIDE

PATCH = 4
TOKENS = (SIDE // PATCH) ** 2
NO_CLASS = CLASSES  # the label of the uncond pass
_FREQUENCIES = 32


@dataclass(frozen=True)
class Shape:
    """Number of blocks and width of a network, a multiple of 8."""

    blocks: int = 12
    width: int = 32


class Trace(NamedTuple):
    """What a pass leaves for others of the same input: the modulation [B, 6, D], and [B, T, D] before every block."""

    modulation: Tensor
    before: list[Tensor]


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift_scale_gate = nn.Parameter(torch.zeros(6, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = 16 if width % 16 == 0 else 8

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Return [B, T, D] for x [B, T, D] and the modulation [B, 6, D] of time and class."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.shift_scale_gate).unsqueeze(2).unbind(1)
        width = x.shape[-1]
        h = F.layer_norm(x, (width,)) * (1 + scale_a) + shift_a
        q, k, v = self.qkv(h).unflatten(-1, (3, width // self.head, self.head)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate_a * self.out(attended)
        h = F.layer_norm(x, (width,)) * (1 + scale_m) + shift_m
        return x + gate_m * self.down(F.gelu(self.up(h), approximate="tanh"))


class DigitTransformer(nn.Module):
    """Predicts the velocity ε − x₀ of x_t = (1 − t) x₀ + t ε. Every block is the identity before training."""

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
        for layer in (self.modulate[1], self.project):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def compile_blocks(self) -> None:
        """Compile the blocks: 1.5 times as fast on a CPU, and other last bits."""
        for block in self.blocks:
            block.compile()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, dropped: Collection[int] = ()) -> Tensor:
        """Return the velocity [B, 1, 16, 16].

        Args:
            x: [B, 1, 16, 16].
            t: [B], the noise level in [0, 1].
            labels: [B], in [0, 10]; 10 is no class.
            dropped: indices of blocks to leave out.
        """
        return self._run(*self._embed(x, t, labels), 0, dropped)

    def traced(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Trace]:
        """Return the velocity, and what `resumed` needs."""
        state, modulation = self._embed(x, t, labels)
        trace = Trace(modulation, [])
        return self._run(state, modulation, 0, (), trace.before), trace

    def resumed(self, trace: Trace, dropped: Collection[int]) -> Tensor:
        """Return `forward` of the traced input with blocks left out, from the first of them on: the same bits."""
        first = min(dropped)
        return self._run(trace.before[first], trace.modulation, first, dropped)

    def _embed(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        side = SIDE // PATCH
        tokens = x.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, TOKENS, PATCH * PATCH)
        state = self.embed(tokens) + self.position
        angles = 1000 * t[:, None] * torch.exp(-math.log(1e4) * torch.arange(_FREQUENCIES) / _FREQUENCIES)
        time = self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.classes(labels)
        return state, self.modulate(time).unflatten(1, (6, -1))

    def _run(
        self,
        state: Tensor,
        modulation: Tensor,
        first: int,
        dropped: Collection[int],
        before: list[Tensor] | None = None,
    ) -> Tensor:
        for index in range(first, self.shape.blocks):
            if before is not None:
                before.append(state)
            if index not in dropped:
                state = self.blocks[index](state, modulation)
        patches = self.project(F.layer_norm(state, (state.shape[-1],)))
        side = SIDE // PATCH
        return patches.reshape(-1, side, side, PATCH, PATCH).transpose(2, 3).reshape(-1, 1, SIDE, SIDE)

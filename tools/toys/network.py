"""Residual networks of several blocks, many of them side by side: one for each training seed.

All seeds go through one batched product, which on a CPU costs hardly more than one of them. Any block of any of them
can be left out.

Dimension letters: S seeds, N points, D dimensions, W width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FREQUENCIES = 8


class _Linear(nn.Module):
    """S linear layers: [S, N, in] -> [S, N, out]."""

    def __init__(self, num_seeds: int, fan_in: int, fan_out: int, *, gain: float = 1.0) -> None:
        super().__init__()
        bound = gain / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(num_seeds, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_seeds, 1, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class ResidualNetworks(nn.Module):
    """S networks: embed -> blocks that add to a stream -> project; each block sees time and class.

    Args:
        num_classes: the label `num_classes` means no class.
    """

    def __init__(self, num_seeds: int, dim: int, num_classes: int, *, num_blocks: int, width: int) -> None:
        super().__init__()
        self.num_seeds, self.num_blocks, self.num_classes = num_seeds, num_blocks, num_classes
        self.embed = _Linear(num_seeds, dim, width)
        self.classes = nn.Parameter(torch.randn(num_seeds, num_classes + 1, width) * 0.5)
        self.time = _Linear(num_seeds, 2 * TIME_FREQUENCIES, width)
        self.inner = nn.ModuleList(_Linear(num_seeds, width, 2 * width) for _ in range(num_blocks))
        self.outer = nn.ModuleList(_Linear(num_seeds, 2 * width, width, gain=0.5) for _ in range(num_blocks))
        self.project = _Linear(num_seeds, width, dim)

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor, dropped: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Velocity [S, N, D].

        Args:
            x: [S, N, D].
            sigma: [S, N], in [0, 1].
            labels: [S, N].
            dropped: for each seed, the blocks that it leaves out.
        """
        frequencies = math.pi * 2.0 ** torch.arange(TIME_FREQUENCIES, dtype=x.dtype) / 4
        angles = sigma.unsqueeze(-1) * frequencies
        told = self.time(torch.cat((angles.sin(), angles.cos()), dim=-1))
        told = told + self.classes.gather(1, labels.unsqueeze(-1).expand(-1, -1, told.shape[-1]))
        stream = self.embed(x)
        for index, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True)):
            added = outer(F.silu(inner(F.layer_norm(stream + told, stream.shape[-1:]))))
            if dropped is not None:
                kept = torch.tensor([index not in blocks for blocks in dropped], dtype=x.dtype)
                added = added * kept.view(-1, 1, 1)
            stream = stream + added
        velocity: Tensor = self.project(F.layer_norm(stream, stream.shape[-1:]) + stream)
        return velocity

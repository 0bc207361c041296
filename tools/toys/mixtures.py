"""Mixtures of Gaussians, one class a Gaussian, and the exact answers that they allow.

Flow matching as everywhere here: x_σ = (1 − σ)·x₀ + σ·ε, and a network predicts the velocity ε − x₀.

Dimension letters: K classes, N points, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Equal weights, isotropic.

    Attributes:
        name: for files and titles.
        centers: [K, D], float32.
        deviation: standard deviation of each Gaussian.
    """

    name: str
    centers: Tensor
    deviation: float

    @property
    def num_classes(self) -> int:
        return self.centers.shape[0]

    @property
    def dim(self) -> int:
        return self.centers.shape[1]

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Points [..., D] of the classes `labels` [...]."""
        noise = torch.randn((*labels.shape, self.dim), generator=generator)
        return self.centers[labels] + self.deviation * noise

    def velocity(self, x: Tensor, sigma: float, labels: Tensor) -> Tensor:
        """E[ε − x₀ | x_σ = x, class], exact: what a perfect conditional network would say.

        Args:
            x: [..., D].
            sigma: in (0, 1].
            labels: [...].
        """
        center, variance = self.centers[labels], self.deviation**2
        total = (1 - sigma) ** 2 * variance + sigma**2
        residual = x - (1 - sigma) * center
        clean = center + (1 - sigma) * variance / total * residual
        noise = sigma / total * residual
        return noise - clean


# The centres are the paper's (App. B.1.3); it does not tell the deviations, these are ours.
ONE_D = Mixture("1d", torch.tensor([[-4.0], [4.0]]), 1.0)
TWO_D = Mixture("2d", torch.tensor([[-4.0, -4.0], [-4.0, 4.0], [4.0, -4.0], [4.0, 4.0]]), 1.0)
MIXTURES = {mixture.name: mixture for mixture in (ONE_D, TWO_D)}

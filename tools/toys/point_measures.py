"""How far samples are from the truth: Wasserstein distance, where modes lie, and what lies outside all of them.

Dimension letters: S seeds, N points, D dimensions, K classes.
"""

import math
from typing import NamedTuple

import torch
from tools_extra import tools_extra
from torch import Tensor

from .mixtures import Mixture

with tools_extra():
    from scipy import stats

OUTSIDE = 3.0  # deviations from the nearest centre
PROJECTIONS = 32
TRUTH_SEED = 10_007


class Measures(NamedTuple):
    """One number a seed, [S]."""

    wasserstein: Tensor
    mode_shift: Tensor
    spread: Tensor
    outside: Tensor


def measure(points: Tensor, labels: Tensor, mixture: Mixture) -> Measures:
    """Samples [S, N, D] of classes `labels` [S, N] -> their measures.

    wasserstein: W₁ to as many true points, a class at a time, then the mean; in 2-D the mean over `PROJECTIONS`
        directions (sliced).
    mode_shift: distance of a class's mean from its centre, mean over classes.
    spread: a class's standard deviation over the true one, mean over classes and dimensions.
    outside: share of points more than `OUTSIDE` deviations from every centre; see `true_outside`.
    """
    truth = mixture.draw(labels, torch.Generator().manual_seed(TRUTH_SEED))
    directions = _directions(mixture.dim)
    distances, shifts, spreads = [], [], []
    for k in range(mixture.num_classes):
        mine = [i for i, label in enumerate(labels[0].tolist()) if label == k]
        got, true = points[:, mine], truth[:, mine]
        projected = [(x @ directions.T).sort(dim=1).values for x in (got, true)]
        distances.append((projected[0] - projected[1]).abs().mean(dim=(1, 2)))
        shifts.append((got.mean(dim=1) - mixture.centers[k]).norm(dim=-1))
        spreads.append(got.std(dim=1).mean(dim=-1) / mixture.deviation)
    nearest = torch.cdist(points, mixture.centers.expand(points.shape[0], -1, -1)).amin(dim=-1)
    outside = (nearest > OUTSIDE * mixture.deviation).float().mean(dim=1)
    return Measures(*(torch.stack(x).mean(dim=0) for x in (distances, shifts, spreads)), outside)


def true_outside(mixture: Mixture) -> float:
    """The share of true points outside, were there one mode; others near it make it smaller."""
    return float(stats.chi2.sf(OUTSIDE**2, mixture.dim))


class Interval(NamedTuple):
    """Mean over seeds, and half the width of its 95 % interval (Student's t)."""

    mean: float
    half: float


def interval(values: Tensor) -> Interval:
    """Of one number a seed, [S], S ≥ 2."""
    count = len(values)
    half = stats.t.ppf(0.975, count - 1) * float(values.std()) / math.sqrt(count)
    return Interval(float(values.mean()), float(half))


def _directions(dim: int) -> Tensor:
    if dim == 1:
        return torch.ones(1, 1)
    angles = torch.arange(PROJECTIONS) * math.pi / PROJECTIONS
    return torch.stack((angles.cos(), angles.sin()), dim=-1)

"""How far samples are from real images: Fréchet distance, precision, recall and accuracy, with paired intervals.

All distances are taken in the classifier's features. Dimension letters: N samples, D = 64 features, R resamples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Digits
from .training import Classifier

NEIGHBOURS, ROWS, RESAMPLES = 3, 2000, 400


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of features."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Reference:
    """Real images, as features [N, D] and as moments."""

    features: np.ndarray
    moments: Moments


@torch.inference_mode()
def features_of(classifier: Classifier, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return features [N, 64] and the predicted classes [N] of images [N, 1, 16, 16]."""
    parts = [classifier(chunk) for chunk in images.split(1000)]
    features, logits = (torch.cat([part[index] for part in parts]) for index in (0, 1))
    return features.double().numpy(), logits.argmax(1).numpy()


def reference(classifier: Classifier, digits: Digits) -> Reference:
    """Return the features of real images."""
    features, _ = features_of(classifier, digits.images)
    return Reference(features, moments(features))


def moments(features: np.ndarray, weights: np.ndarray | None = None) -> Moments:
    """Return mean and covariance, each row counted `weights` times."""
    weights = np.ones(len(features)) if weights is None else weights
    mean = weights @ features / weights.sum()
    centred = features - mean
    return Moments(mean, (centred * weights[:, None]).T @ centred / (weights.sum() - 1))


def frechet(a: Moments, b: Moments) -> float:
    """Return |m_a − m_b|² + tr(C_a + C_b − 2 (C_a C_b)^½), the squared Fréchet distance of two Gaussians."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + traces - 2 * cross)


def paired_change(ours: np.ndarray, theirs: np.ndarray, real: Moments, seed: int = 0) -> tuple[float, float, float]:
    """Return the change of the Fréchet distance from `theirs` to `ours`, in per cent, with its 95 % interval.

    Row i of both is made from the same noise, so both are resampled alike.
    """
    rng, count = np.random.default_rng(seed), len(ours)
    changes = []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(float)
        a, b = (frechet(moments(features, weights), real) for features in (ours, theirs))
        changes.append(100 * (a / b - 1))
    whole = 100 * (frechet(moments(ours), real) / frechet(moments(theirs), real) - 1)
    # A resample has fewer distinct rows, which adds alike to both distances and so pulls the ratio towards 1: the
    # interval is moved to lie about the change of the whole.
    low, high = np.quantile(changes, (0.025, 0.975)) + whole - np.mean(changes)
    return whole, float(low), float(high)


def precision_and_recall(samples: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Return the share of samples near a real image, and of real images near a sample.

    "Near" means within the distance to the third neighbour of the same kind (Kynkäänniemi et al., arXiv 1904.06991).
    Takes the first 2,000 rows of each.
    """
    samples, real = samples[:ROWS], real[:ROWS]
    between = _distances(samples, real)
    return (
        float((between <= _radii(real)[None, :]).any(1).mean()),
        float((between <= _radii(samples)[:, None]).any(0).mean()),
    )


def _radii(points: np.ndarray) -> np.ndarray:
    return np.partition(_distances(points, points), NEIGHBOURS, axis=1)[
        :, NEIGHBOURS
    ]  # the nearest is the point itself


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared distances [N, M]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return squares.clip(0)

"""Means, paired differences and their bootstrap intervals, clips of one caption staying together; the spread of runs.

Knows numbers only. Dimension letters: N values, C captions, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CHUNK = 500


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """Values [N] of clips and the number of each one's caption [N]; NaN where a clip has no such value."""

    values: np.ndarray
    captions: np.ndarray

    def sums(self, num_captions: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts [C] of the values there are."""
        there = ~np.isnan(self.values)
        captions = self.captions[there]
        return (
            np.bincount(captions, self.values[there], minlength=num_captions),
            np.bincount(captions, minlength=num_captions).astype(float),
        )

    @property
    def mean(self) -> float:
        return float(np.nanmean(self.values)) if (~np.isnan(self.values)).any() else float("nan")


class Bootstrap:
    """Captions drawn with replacement, the same draws for everything that is compared.

    Args:
        num_captions: C. Methods are paired by caption: a draw takes all clips of a caption, of every method.
    """

    def __init__(self, num_captions: int, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._num_captions = num_captions
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, num_captions, (resamples, num_captions))
        self._weights = np.stack([np.bincount(draw, minlength=num_captions) for draw in draws])  # [R, C]

    def mean(self, sample: Sample) -> Estimate:
        return estimate(sample.mean, self._means(sample))

    def difference(self, sample: Sample, base: Sample) -> Estimate:
        """The mean of one less that of the other."""
        return estimate(sample.mean - base.mean, self._means(sample) - self._means(base))

    def of_sets(
        self, captions: np.ndarray, statistic: Callable[[np.ndarray | None], float]
    ) -> tuple[float, np.ndarray]:
        """A statistic of a whole set of clips, and its resampled values [R].

        Args:
            captions: [N].
            statistic: of the set in which each clip is as often as the weights [N] say; None: once.
        """
        resampled = [statistic(weights[captions]) for weights in self._weights]
        return statistic(None), np.array(resampled)

    def _means(self, sample: Sample) -> np.ndarray:
        sums, counts = sample.sums(self._num_captions)
        with np.errstate(invalid="ignore"):
            return (self._weights @ sums) / (self._weights @ counts)


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """The value with the middle 95 % of what resampling made of it [R]; NaN where no resample has a value."""
    if np.isnan(resampled).all():
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


class Spread(NamedTuple):
    """How far runs over the same captions lie apart.

    Attributes:
        mean: of everything.
        of_means: standard deviation of the runs' means.
        of_clips: standard deviation of a clip over the runs, root mean square over the clips.
        variation: `of_means` over `mean`, the coefficient of variation.
    """

    mean: float
    of_means: float
    of_clips: float
    variation: float


def spread(runs: Sequence[np.ndarray]) -> Spread:
    """Of at least two runs, each [N], clips in the same order; clips that lack a value in one are left out."""
    values = np.stack(runs)
    values = values[:, ~np.isnan(values).any(axis=0)]
    mean, of_means = float(values.mean()), float(values.mean(axis=1).std(ddof=1))
    of_clips = float(np.sqrt(values.var(axis=0, ddof=1).mean()))
    return Spread(mean, of_means, of_clips, of_means / mean if mean else float("nan"))

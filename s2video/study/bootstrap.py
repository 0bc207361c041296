"""Means, paired differences and their bootstrap intervals; clips of one prompt stay together.

Knows numbers only. Dimension letters: N values, C prompts (captions), R resamples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
MIN_PROMPTS = 6  # with fewer, all differences have the same sign by chance in over 5 % of studies (2 · 0.5⁵ = 6 %)
_LARGEST_NEED = 1_000_000  # prompts
# An interval of 1.96 standard errors excludes 0 in 80 % of studies if the true difference is 1.96 + 0.84 of them.
_POWER = ((1.96 + 0.84) / 1.96) ** 2


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """Values [N] of clips and the number of each one's prompt [N]; NaN where a clip has no such value."""

    values: np.ndarray
    captions: np.ndarray

    def sums(self, num_captions: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sums and counts [C] of the values there are."""
        there = ~np.isnan(self.values)
        captions = self.captions[there]
        return (
            np.bincount(captions, self.values[there], minlength=num_captions),
            np.bincount(captions, minlength=num_captions).astype(float),
        )

    @property
    def mean(self) -> float:
        """The mean of the values there are; NaN if there is none."""
        return float(np.nanmean(self.values)) if (~np.isnan(self.values)).any() else math.nan


class Bootstrap:
    """Prompts drawn with replacement, the same draws for everything that is compared.

    Args:
        num_captions: C. Methods are paired by prompt: a draw takes all clips of a prompt, of every method.
    """

    def __init__(self, num_captions: int, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._num_captions = num_captions
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, num_captions, (resamples, num_captions))
        self._weights = np.stack([np.bincount(draw, minlength=num_captions) for draw in draws])  # [R, C]

    def mean(self, sample: Sample) -> Estimate:
        """Return the mean of a sample with its interval."""
        return estimate(sample.mean, self._means(sample))

    def difference(self, sample: Sample, base: Sample) -> Estimate:
        """Return the mean of one less that of the other."""
        return estimate(sample.mean - base.mean, self._means(sample) - self._means(base))

    def of_sets(
        self, captions: np.ndarray, statistic: Callable[[np.ndarray | None], float]
    ) -> tuple[float, np.ndarray]:
        """Return a statistic of a whole set of clips, and its resampled values [R].

        Args:
            captions: [N].
            statistic: of the set in which each clip is as often as the weights [N] say; None: once.
        """
        resampled = [statistic(weights[captions]) for weights in self._weights]
        return statistic(None), np.array(resampled)

    def _means(self, sample: Sample) -> np.ndarray:
        sums, counts = sample.sums(self._num_captions)
        with np.errstate(invalid="ignore"):
            means: np.ndarray = (self._weights @ sums) / (self._weights @ counts)
        return means


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """Return the value with the middle 95 % of the resampled values [R]; NaN where no resample has a value."""
    if np.isnan(resampled).all():
        return Estimate(value, math.nan, math.nan)
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def is_decided(difference: Estimate, num_prompts: int) -> bool:
    """Return whether an interval excludes 0, with enough prompts for this to mean something."""
    return num_prompts >= MIN_PROMPTS and (difference.low > 0 or difference.high < 0)


def prompts_needed(difference: Estimate, num_prompts: int) -> int | None:
    """Return about how many prompts would decide whether there is a difference of this size.

    With this many prompts, four of five studies have an interval that excludes 0. Two significant digits; None if
    there are no more than in a study of a million prompts.
    """
    if not all(map(math.isfinite, difference)) or difference.value == 0:
        return None
    half_width = (difference.high - difference.low) / 2
    needed = max(MIN_PROMPTS, num_prompts * _POWER * (half_width / difference.value) ** 2)
    if needed > _LARGEST_NEED:
        return None
    digit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / digit) * digit

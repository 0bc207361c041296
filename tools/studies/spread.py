"""The spread of runs over the same captions. Knows numbers only. Dimension letters: N values."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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

"""The work of sub branches in a step, for drawn masks or on average. Knows no model, mesh or card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..guidance.masks import MaskSpec


@dataclass(frozen=True)
class SubWork:
    """The actual or expected work of the sub branches of one step.

    Attributes:
        runs: number of sub branches that run each block.
        forks: number of different blocks at which they fork from cond.
        count: number of sub branches, without those that drop nothing and so equal cond.
        started: share of steps in which at least one has forked when a block begins, for each block, in [0, 1].
    """

    runs: tuple[float, ...]
    forks: float
    count: float
    started: tuple[float, ...] = ()

    @property
    def passes(self) -> float:
        """The work in passes through all blocks, with equal weight for each block."""
        return math.fsum(self.runs) / len(self.runs)

    @classmethod
    def of_masks(cls, masks: Sequence[Sequence[int]], num_blocks: int, *, share_prefix: bool = True) -> SubWork:
        """Return the work for the masks that one step has drawn."""
        masks = [mask for mask in masks if mask]
        starts = [min(mask) if share_prefix else 0 for mask in masks]
        runs = tuple(
            float(sum(start <= index and index not in mask for start, mask in zip(starts, masks, strict=True)))
            for index in range(num_blocks)
        )
        started = tuple(float(any(start <= index for start in starts)) for index in range(num_blocks))
        return cls(runs, len(set(starts)), len(masks), started)

    @classmethod
    def expected(cls, spec: MaskSpec, num_blocks: int, *, share_prefix: bool = True) -> SubWork:
        """Return the exact expected work of a step in the window over uniform draws of `spec.count` eligible blocks.

        With n eligible blocks, d dropped, and k eligible ones before block i, none of those k is dropped with
        probability C(n − k, d) / C(n, d). A sub branch runs block i if it has forked by then and i is not dropped.
        """
        eligible, dropped = spec.eligible(num_blocks), spec.count(num_blocks)
        if dropped == 0:
            return cls((0.0,) * num_blocks, 0.0, 0.0, (0.0,) * num_blocks)

        def undropped(of: int) -> float:
            return math.comb(len(eligible) - of, dropped) / math.comb(len(eligible), dropped)

        runs, forks, started, before = [], [], [], 0
        for index in range(num_blocks):
            drawn = index in eligible
            kept = undropped(1) if drawn else 1.0
            runs.append(spec.num_draws * (kept - undropped(before + drawn) if share_prefix else kept))
            first = undropped(before) - undropped(before + drawn)
            forks.append(1 - (1 - first) ** spec.num_draws)
            started.append(1 - undropped(before + drawn) ** spec.num_draws if share_prefix else 1.0)
            before += drawn
        total = math.fsum(forks) if share_prefix else 1.0
        return cls(tuple(runs), total, float(spec.num_draws), tuple(started))

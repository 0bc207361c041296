"""The blocks that the sub pass drops, as a pure function of (seed, step, draw).

The result does not depend on rank, world size, global generators or earlier steps, so any process can compute any mask
at any time. The numbers are raw 64-bit words of Philox, a counter-based generator; NumPy guarantees only those to stay
the same in all versions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np

from .reuse import EXACT, ReuseSpec, StepPasses, plan_passes

_KEY = 0x5332_5649_4445_4F00  # "S2VIDEO\0"; separates these streams from other uses of the same seed


@dataclass(frozen=True)
class MaskSpec:
    """The settings for drawing masks.

    Attributes:
        drop_ratio: fraction of all blocks to drop, in [0, 1]; the paper uses about 0.1 (Table 4).
        drop_count: number of blocks to drop; replaces the ratio if set.
        never_drop: indices of blocks that are never dropped; by default the first (Sec. 4.5: dropping it always hurts).
        band: first and last index that may be dropped, inclusive; None for all.
        window: the part of the denoising process, in [0, 1], in which masks are drawn (Fig. 7e).
        window_in: whether that part is counted in steps or in noise levels.
        num_draws: masks per step, N of Eq. 3; 1 is Eq. 4.
    """

    drop_ratio: float = 0.1
    drop_count: int | None = None
    never_drop: tuple[int, ...] = (0,)
    band: tuple[int, int] | None = None
    window: tuple[float, float] = (0.1, 0.9)
    num_draws: int = 1
    window_in: Literal["steps", "noise"] = "steps"

    def eligible(self, num_blocks: int) -> tuple[int, ...]:
        """Return the indices in [0, num_blocks) that may be dropped, ascending."""
        first, last = self.band if self.band is not None else (0, num_blocks - 1)
        return tuple(i for i in range(num_blocks) if first <= i <= last and i not in self.never_drop)

    def count(self, num_blocks: int) -> int:
        """Return the number of blocks to drop per draw: max(1, ratio × blocks rounded half up), at most all eligible.

        A ratio or count of 0 drops nothing.
        """
        if self.drop_count is not None:
            wanted = self.drop_count
        elif self.drop_ratio == 0:
            wanted = 0
        else:
            wanted = max(1, math.floor(_exact(self.drop_ratio) * num_blocks + Fraction(1, 2)))
        return min(wanted, len(self.eligible(num_blocks)))

    def active(self, step: int, num_steps: int, level: float | None = None) -> bool:
        """Return whether step i of n is in the window, in exact fractions.

        In steps: window[0] ≤ (i + ½)/n ≤ window[1]. In noise: window[0] ≤ 1 − σ ≤ window[1], with the step's noise
        level σ, from 1 (noise) to 0 (video), as `level`.
        """
        if self.window_in == "noise":
            assert level is not None, "a window in noise needs the step's noise level"
            middle = 1 - Fraction(level)
        else:
            middle = Fraction(2 * step + 1, 2 * num_steps)
        return _exact(self.window[0]) <= middle <= _exact(self.window[1])


def dropped_blocks(spec: MaskSpec, *, num_blocks: int, seed: int, step: int, draw: int = 0) -> tuple[int, ...]:
    """Return the blocks that one draw drops, ascending: a uniform choice of `spec.count` eligible ones.

    Args:
        seed: the job's mask seed, in [0, 2**64).
        step: index of the denoising step, from 0. The window is ignored here; see `step_masks`.
        draw: index of the draw within the step, from 0.

    Every eligible block gets a random word, and those with the smallest words are dropped.
    """
    eligible = spec.eligible(num_blocks)
    count = spec.count(num_blocks)
    key, counter = np.array([seed, _KEY], np.uint64), np.array([0, 0, step, draw], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(len(eligible))
    order = sorted(range(len(eligible)), key=lambda i: (int(words[i]), i))
    return tuple(sorted(eligible[i] for i in order[:count]))


@dataclass(frozen=True)
class MaskSchedule:
    """The masks of one job, used by the denoiser and by the sidecar.

    Attributes:
        spec: the settings for drawing masks; None for no masks.
        num_blocks: number of blocks of the transformer.
        seed: the job's mask seed, in [0, 2**64).
        num_steps: number of the scheduler's steps, which may exceed `num_inference_steps` (Heun: 2n − 1).
        levels: the noise level of each step; needed by a window in noise and by reuse.
        reuse: how often passes are computed. A step that forecasts sub draws no masks.
        restart: the first step of the second transformer, if there is one.
    """

    spec: MaskSpec | None
    num_blocks: int
    seed: int
    num_steps: int
    levels: tuple[float, ...] = ()
    reuse: ReuseSpec = EXACT
    restart: int | None = None

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the masks of one step, one for each draw; none outside the window, or if sub is forecast."""
        if self.spec is None or (not self.reuse.is_exact and self._computes_sub[step] != "computed"):
            return ()
        return step_masks(
            self.spec,
            num_blocks=self.num_blocks,
            seed=self.seed,
            step=step,
            num_steps=self.num_steps,
            level=self._level(step),
        )

    def passes(
        self, has_uncond: Sequence[bool] | None = None, active: Sequence[bool] | None = None
    ) -> tuple[StepPasses, ...]:
        """Return what each step computes and forecasts.

        Args:
            has_uncond: whether a step uses an uncond prediction; None: no step. It decides nothing about sub.
            active: whether another guidance method uses a sub prediction in a step; None: the window of S², and
                `sub_until`, which is for S² alone.
        """
        return plan_passes(
            self.reuse if active is None else replace(self.reuse, sub_until=1.0),
            levels=self.levels or (0.0,) * self.num_steps,
            active=[self._is_active(step) for step in range(self.num_steps)] if active is None else active,
            has_uncond=[False] * self.num_steps if has_uncond is None else has_uncond,
            restart=self.restart,
        )

    @cached_property
    def _computes_sub(self) -> tuple[str, ...]:
        return tuple(passes.sub for passes in self.passes())

    def _is_active(self, step: int) -> bool:
        return self.spec is not None and self.spec.active(step, self.num_steps, self._level(step))

    def _level(self, step: int) -> float | None:
        return self.levels[step] if self.levels else None

    def records(self) -> list[dict[str, Any]]:
        """Return every mask of the job as JSON: `step` and `draw`, both from 0, and the blocks `dropped`, ascending."""
        return [
            {"step": step, "draw": draw, "dropped": list(mask)}
            for step in range(self.num_steps)
            for draw, mask in enumerate(self.step(step))
        ]


def step_masks(
    spec: MaskSpec, *, num_blocks: int, seed: int, step: int, num_steps: int, level: float | None = None
) -> tuple[tuple[int, ...], ...]:
    """Return the masks of one step, one for each draw; none outside the window. `level` is the step's noise level."""
    if not spec.active(step, num_steps, level):
        return ()
    return tuple(
        dropped_blocks(spec, num_blocks=num_blocks, seed=seed, step=step, draw=draw) for draw in range(spec.num_draws)
    )


def _exact(value: float) -> Fraction:
    """Return the exact decimal value: 0.1 is one tenth, not the nearest binary fraction."""
    return Fraction(str(value))

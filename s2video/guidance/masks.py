"""Which blocks the sub pass leaves out: a pure function of (seed, step, draw).

No rank, world size, global generator or earlier step enters, so any process can name any mask at any time. The
numbers come from Philox, a counter-based generator, as raw 64-bit words: NumPy guarantees those, and only those,
to stay the same from version to version.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

_KEY = 0x5332_5649_4445_4F00  # "S2VIDEO\0": keeps these streams apart from other users of the same seed


@dataclass(frozen=True)
class MaskSpec:
    """How masks are drawn.

    Attributes:
        drop_ratio: share of all blocks left out, in [0, 1]; the paper's choice is about 0.1 (Table 4).
        drop_count: number of blocks left out; where given, it stands in for the ratio.
        never_drop: block indices that always stay; the first block by default (Sec. 4.5: dropping it always hurts).
        band: first and last index that may be dropped, inclusive; None for all.
        window: the part of the denoising process, in [0, 1], in which masks are drawn (Fig. 7e).
        num_draws: masks a step, N of Eq. 3; 1 is Eq. 4.
    """

    drop_ratio: float = 0.1
    drop_count: int | None = None
    never_drop: tuple[int, ...] = (0,)
    band: tuple[int, int] | None = None
    window: tuple[float, float] = (0.1, 0.9)
    num_draws: int = 1

    def eligible(self, num_blocks: int) -> tuple[int, ...]:
        """Indices in [0, num_blocks) that may be dropped, ascending."""
        first, last = self.band if self.band is not None else (0, num_blocks - 1)
        return tuple(i for i in range(num_blocks) if first <= i <= last and i not in self.never_drop)

    def count(self, num_blocks: int) -> int:
        """Blocks left out by one draw: max(1, ratio × blocks rounded half up), at most the eligible ones.

        A ratio or count of 0 drops nothing.
        """
        if self.drop_count is not None:
            wanted = self.drop_count
        elif self.drop_ratio == 0:
            wanted = 0
        else:
            wanted = max(1, math.floor(_exact(self.drop_ratio) * num_blocks + Fraction(1, 2)))
        return min(wanted, len(self.eligible(num_blocks)))

    def active(self, step: int, num_steps: int) -> bool:
        """Whether step i of n lies in the window: window[0] ≤ (i + ½)/n ≤ window[1], in exact fractions."""
        middle = Fraction(2 * step + 1, 2 * num_steps)
        return _exact(self.window[0]) <= middle <= _exact(self.window[1])


def dropped_blocks(spec: MaskSpec, *, num_blocks: int, seed: int, step: int, draw: int = 0) -> tuple[int, ...]:
    """The blocks that one draw leaves out, ascending: a uniform choice of `spec.count` among the eligible ones.

    Args:
        seed: the job's mask seed, in [0, 2**64).
        step: index of the denoising step, from 0. The window is not looked at here: see `step_masks`.
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
    """The masks of one job: the denoiser takes them from here, and so does the record of them beside the video.

    Attributes:
        spec: how masks are drawn; None: no step has any.
        num_blocks: blocks of the transformer.
        seed: the job's mask seed, in [0, 2**64).
        num_steps: steps that the scheduler takes, which may be more than `num_inference_steps` (Heun: 2n − 1).
    """

    spec: MaskSpec | None
    num_blocks: int
    seed: int
    num_steps: int

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The masks of one step, one for each draw; none outside the window."""
        if self.spec is None:
            return ()
        return step_masks(self.spec, num_blocks=self.num_blocks, seed=self.seed, step=step, num_steps=self.num_steps)

    def records(self) -> list[dict[str, Any]]:
        """Every mask of the job as JSON: `step` and `draw`, both from 0, and the blocks `dropped`, ascending."""
        return [
            {"step": step, "draw": draw, "dropped": list(mask)}
            for step in range(self.num_steps)
            for draw, mask in enumerate(self.step(step))
        ]


def step_masks(spec: MaskSpec, *, num_blocks: int, seed: int, step: int, num_steps: int) -> tuple[tuple[int, ...], ...]:
    """The masks of one step, one for each draw; none outside the window."""
    if not spec.active(step, num_steps):
        return ()
    return tuple(
        dropped_blocks(spec, num_blocks=num_blocks, seed=seed, step=step, draw=draw) for draw in range(spec.num_draws)
    )


def _exact(value: float) -> Fraction:
    """0.1 means one tenth here, not the binary fraction nearest to it."""
    return Fraction(str(value))

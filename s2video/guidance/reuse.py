"""Which passes each step computes, and which it forecasts from earlier steps, as a pure function of the schedule.

A step needs cond, uncond and sub. Because predictions change little from step to step, some of them can be forecast.
Which ones depends on the settings, the number of steps and their noise levels alone, as masks do: on no threshold and
no value, so every rank skips the same passes and nothing has to be sent. `forecasts.py` makes the forecasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

# From this λ on, forecasts of cond − uncond are warned about: their error is multiplied by λ − 1.
LARGE_SCALE = 4.0
SAFE_START = 0.4  # none of these clips was lost if cond − uncond was forecast from here on
MEASURED_AT_5 = (
    "for 16 clips of the embedded model at cfg_scale 5, its median error was 0.04, where another mask seed changes "
    "0.01, and one clip was lost"
)

How = Literal["computed", "forecast", "none"]
Preset = Literal["exact", "deviation", "light", "fast"]

LEAST_STEPS = 16  # with fewer, a step is so long that the prediction before it says little about the next one


@dataclass(frozen=True)
class ReuseSpec:
    """How often passes are computed.

    Attributes:
        cond_every, uncond_every: from `start` on, the pass is computed in every n-th step; n ≥ 1. 1 forecasts nothing.
        sub_every: the same for sub in the steps in which S² acts, from the first of them on.
        start: part of the denoising, in [0, 1], before which cond and uncond are computed in every step.
        sub_until: part of the denoising, in [0, 1], after which S² does not act.
        order: 0 holds the last prediction; 1 extrapolates the last two, linearly in the noise level. sub − cond is
            always held, because the next one has another mask.

    uncond and sub are computed only together with cond: forecast are cond − uncond and sub − cond, and sub starts from
    cond's activations. So `uncond_every` and `sub_every` are at least `cond_every`.
    """

    cond_every: int = 1
    uncond_every: int = 1
    sub_every: int = 1
    start: float = 0.2
    sub_until: float = 1.0
    order: int = 1

    @property
    def is_exact(self) -> bool:
        """Whether every pass is computed in every step that has it."""
        return self.cond_every == self.uncond_every == self.sub_every == 1 and self.sub_until >= 1


EXACT = ReuseSpec()
PRESETS: dict[Preset, ReuseSpec] = {
    "exact": EXACT,
    "deviation": ReuseSpec(sub_every=2, sub_until=0.5),
    "light": ReuseSpec(uncond_every=2, sub_every=2),
    "fast": ReuseSpec(cond_every=2, uncond_every=2, sub_every=2, sub_until=0.5),
}


class StepPasses(NamedTuple):
    """What one step does about each prediction: compute it, forecast it, or do without."""

    cond: How = "computed"
    uncond: How = "computed"
    sub: How = "computed"


class _Pass:
    """One kind of pass while the steps are planned."""

    def __init__(self, every: int, points_needed: int) -> None:
        self._every, self._points_needed = every, points_needed
        self.levels: list[float] = []  # of the steps that computed it since the start or the last restart
        self._last = 0

    def is_due(self, step: int) -> bool:
        return len(self.levels) < self._points_needed or step - self._last >= self._every

    def computed(self, step: int, level: float) -> None:
        self._last = step
        if self.levels[-1:] != [level]:  # a scheduler with two evaluations at a level gives one point for a line
            self.levels.append(level)


def plan_passes(
    spec: ReuseSpec,
    *,
    levels: Sequence[float],
    active: Sequence[bool],
    has_uncond: Sequence[bool],
    restart: int | None = None,
) -> tuple[StepPasses, ...]:
    """Return what each step computes.

    Args:
        levels: the noise level of every step, falling.
        active: whether S² (or skip layer guidance) acts in a step, before `sub_until`.
        has_uncond: whether a step uses an uncond prediction (λ ≠ 1).
        restart: the first step of a second transformer, which forecasts nothing from the first one's predictions.
    """
    num_steps, planned = len(levels), []
    cond, uncond, sub = passes = (
        _Pass(spec.cond_every, spec.order + 1),
        _Pass(spec.uncond_every, spec.order + 1),
        _Pass(spec.sub_every, 1),
    )
    for step, level in enumerate(levels):
        if step == restart:
            for kind in passes:
                kind.levels.clear()
        is_thinned = _is_past(spec.start, step, num_steps)
        acts = active[step] and not _is_beyond(spec.sub_until, step, num_steps)
        # the first sub of all needs cond's activations at this step
        is_first = acts and not sub.levels
        computes_cond = not is_thinned or cond.is_due(step) or is_first
        computes_uncond = has_uncond[step] and computes_cond and (not is_thinned or uncond.is_due(step))
        computes_sub = acts and computes_cond and sub.is_due(step)
        computed = (computes_cond, computes_uncond, computes_sub)
        for kind, is_computed in zip(passes, computed, strict=True):
            if is_computed:
                kind.computed(step, level)
        planned.append(
            StepPasses(_how(computes_cond, True), _how(computes_uncond, has_uncond[step]), _how(computes_sub, acts))
        )
    return tuple(planned)


def _how(is_computed: bool, is_used: bool) -> How:
    return "computed" if is_computed else "forecast" if is_used else "none"


def _middle(step: int, num_steps: int) -> Fraction:
    return Fraction(2 * step + 1, 2 * num_steps)


def _is_past(part: float, step: int, num_steps: int) -> bool:
    """Return whether the middle of a step is at or after a part of the denoising, in exact fractions."""
    return _middle(step, num_steps) >= Fraction(str(part))


def _is_beyond(part: float, step: int, num_steps: int) -> bool:
    return _middle(step, num_steps) > Fraction(str(part))

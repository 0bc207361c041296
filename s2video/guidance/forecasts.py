"""Forecasts of predictions from those of earlier steps, in float32. Which step needs one is decided in `reuse.py`.

Whole predictions are kept, which every rank has already; so no rank sends or decides anything, and activations, weights
and caches of blocks play no part. All arithmetic is elementwise: ranks with the same predictions get the same forecasts
to the bit.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .equations import Predictions, mean_deviation
from .reuse import ReuseSpec, StepPasses


class History:
    """The last one or two values of a function of the noise level σ.

    Order 0: f(σ) = f₁.  Order 1: f(σ) = f₁ + (σ − σ₁) / (σ₁ − σ₂) · (f₁ − f₂), exact for a function linear in σ. f₁ is
    the newest value. With one value so far, order 1 is order 0.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self.levels: list[float] = []
        self.values: list[Tensor] = []

    def add(self, level: float, value: Tensor) -> None:
        """Keep a value in float32; it replaces one at the same level."""
        if self.levels[-1:] == [level]:
            self.levels.pop()
            self.values.pop()
        kept = self._order + 1
        self.levels = [*self.levels, level][-kept:]
        self.values = [*self.values, value.float()][-kept:]

    def forecast(self, level: float) -> Tensor:
        """Return the value at a level, float32. There must be a value."""
        if len(self.values) == 1:
            return self.values[0]
        (older, newer), (before, last) = self.levels, self.values
        return last + (level - newer) / (newer - older) * (last - before)

    def clear(self) -> None:
        self.levels, self.values = [], []


class Forecasts:
    """The predictions of one video's steps, of which some are forecast.

    Keeps only what will be forecast: cond, cond − uncond, and the mean of sub − cond over the draws.
    """

    def __init__(self, spec: ReuseSpec) -> None:
        self._histories = {
            "cond": History(spec.order) if spec.cond_every > 1 else None,
            "difference": History(spec.order) if spec.uncond_every > 1 else None,
            "deviation": History(0) if spec.sub_every > 1 else None,
        }

    def complete(self, passes: StepPasses, level: float, computed: Predictions | None) -> Predictions:
        """Return the predictions of a step, with forecasts of those that were not computed.

        A forecast sub prediction stands for the mean of all draws, which has the same effect in Eq. 3.

        Args:
            passes: the plan of this step, from `plan_passes`. Call it for the steps in order.
            level: σ of this step.
            computed: what was computed; None if nothing was.
        """
        if computed is not None:
            self.keep(level, computed)
        cond = self._forecast("cond", level) if computed is None else computed.cond
        uncond, subs = (None, ()) if computed is None else (computed.uncond, computed.subs)
        if passes.uncond == "forecast":
            uncond = self.uncond(level, cond)
        if passes.sub == "forecast":
            subs = (cond.float() + self._forecast("deviation", level),)
        return Predictions(cond, uncond, subs)

    def can_complete(self, passes: StepPasses) -> bool:
        """Return whether there are earlier predictions for all forecasts of a step."""
        hows = dict(zip(self._histories, passes, strict=True))
        return all(
            history is None or history.values for name, history in self._histories.items() if hows[name] == "forecast"
        )

    def clear(self) -> None:
        """Forget all predictions: those that follow are another transformer's."""
        for history in self._histories.values():
            if history is not None:
                history.clear()

    def state(self) -> dict[str, Any]:
        """Return the histories as lists of numbers and tensors, by name."""
        found: dict[str, Any] = {}
        for name, history in self._histories.items():
            if history is not None:
                found |= {f"reuse.{name}.levels": history.levels, f"reuse.{name}.values": history.values}
        return found

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned after an earlier step."""
        for name, history in self._histories.items():
            if history is not None:
                history.levels = list(state[f"reuse.{name}.levels"])
                history.values = list(state[f"reuse.{name}.values"])

    def uncond(self, level: float, cond: Tensor) -> Tensor:
        """Return the forecast of uncond at a level, float32, for the cond of that step."""
        return cond.float() - self._forecast("difference", level)

    def keep(self, level: float, computed: Predictions) -> None:
        """Keep what later forecasts need of predictions that were computed, in one call or, at one level, in two."""
        cond, difference, deviation = self._histories.values()
        if cond is not None:
            cond.add(level, computed.cond)
        if difference is not None and computed.uncond is not None:
            difference.add(level, computed.cond.float() - computed.uncond.float())
        if deviation is not None and computed.subs:
            deviation.add(level, mean_deviation(computed))

    def _forecast(self, name: str, level: float) -> Tensor:
        history = self._histories[name]
        assert history is not None and history.values, f"{name}: a step to forecast follows one that was computed"
        return history.forecast(level)

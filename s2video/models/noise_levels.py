"""The noise level σ of each step of a scheduler, for forecasts and for windows in noise: 1 is noise, 0 the video."""

from collections.abc import Sequence
from typing import Any


def noise_levels(scheduler: Any) -> tuple[float, ...]:
    """Return σ of each step, in [0, 1], of a scheduler after `set_timesteps`.

    These are the sigmas of flow matching. A scheduler with other sigmas, or none, has its timesteps for that, divided
    by their number in training; in flow matching the two are the same, except that timesteps can be rounded.
    """
    num_steps = len(scheduler.timesteps)
    sigmas = _numbers(getattr(scheduler, "sigmas", ()))[:num_steps]
    if len(sigmas) == num_steps and all(0 <= sigma <= 1 for sigma in sigmas):
        return sigmas
    return tuple(timestep / scheduler.config.num_train_timesteps for timestep in _numbers(scheduler.timesteps))


def _numbers(values: Sequence[float] | Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values.tolist() if hasattr(values, "tolist") else values or ()))

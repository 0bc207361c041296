"""The denoising loop over a diffusers scheduler. Model and guidance are in `denoise` and not known here."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import NumericalError

Denoise = Callable[[Tensor, Tensor, int], Tensor]
OnStep = Callable[[int, int, Tensor], None]
StepNoise = Callable[[int], list[torch.Generator]]


class Scheduler(Protocol):
    """The part of a diffusers scheduler that `sample` uses (UniPC, flow-matching Euler and similar)."""

    timesteps: Tensor

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = ..., **random: Any
    ) -> Any: ...


def sample(
    denoise: Denoise,
    latents: Tensor,
    scheduler: Scheduler,
    *,
    first_step: int = 0,
    on_step: OnStep | None = None,
    noise: StepNoise | None = None,
) -> Tensor:
    """Denoise noise to clean latents.

    Args:
        denoise: maps (latents, timestep, step index from 0) to the guided prediction, with the latents' shape.
        latents: [B, C, T, H, W], seeded noise, or the result of `first_step` steps.
        scheduler: a scheduler after `set_timesteps`; it keeps its own state.
        first_step: number of steps already done; the scheduler's state must be the one after them.
        on_step: called with (steps done, total steps, latents) after each step.
        noise: maps a step to the generators of the noise that the scheduler adds in it; None if it takes none.

    Raises:
        NumericalError: the latents became NaN or infinite; the message names the step.
    """
    timesteps = scheduler.timesteps
    for step, timestep in enumerate(timesteps[first_step:], first_step):
        prediction = denoise(latents, timestep, step)
        random = {} if noise is None else {"generator": noise(step)}
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **random)[0]
        if not torch.isfinite(latents).all():
            raise NumericalError(
                f"step {step + 1} of {len(timesteps)} (timestep {float(timestep.flatten()[0]):g}): the latents became "
                "NaN or infinite; try a smaller guidance scale, model.dtype bfloat16 instead of float16, or float32"
            )
        if on_step is not None:
            on_step(step + 1, len(timesteps), latents)
    return latents

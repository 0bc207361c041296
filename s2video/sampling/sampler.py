"""The denoising loop over a diffusers scheduler. Knows no model and no guidance: those are in `denoise`."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import NumericalError

Denoise = Callable[[Tensor, Tensor, int], Tensor]
OnStep = Callable[[int, int, Tensor], None]


class Scheduler(Protocol):
    """The part of a diffusers scheduler that is used here (UniPC, flow-matching Euler and their kin)."""

    timesteps: Tensor

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = ...) -> Any: ...


def sample(
    denoise: Denoise, latents: Tensor, scheduler: Scheduler, *, first_step: int = 0, on_step: OnStep | None = None
) -> Tensor:
    """From noise to clean latents.

    Args:
        denoise: maps (latents, timestep, step index from 0) to the guided prediction, all of the latents' shape.
        latents: seeded noise, or what `first_step` steps have made of it, [B, C, T, H, W].
        scheduler: after `set_timesteps`; it is stepped through its timesteps and keeps its own state.
        first_step: steps that are done already; the scheduler's state is the one after them.
        on_step: called with (steps done, steps in all, latents) after each step.

    Raises:
        NumericalError: as soon as the latents hold a NaN or an infinity; the message names the step.
    """
    timesteps = scheduler.timesteps
    for step, timestep in enumerate(timesteps[first_step:], first_step):
        prediction = denoise(latents, timestep, step)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if not torch.isfinite(latents).all():
            raise NumericalError(
                f"step {step + 1} of {len(timesteps)} (timestep {float(timestep):g}): the latents became NaN or "
                "infinite, so there would be no picture; try a smaller guidance scale, model.dtype bfloat16 in place "
                "of float16, or float32"
            )
        if on_step is not None:
            on_step(step + 1, len(timesteps), latents)
    return latents

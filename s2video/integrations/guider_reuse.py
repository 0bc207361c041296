"""Reuse in a guider: what each step of a video computes, and what it forecasts from the steps before.

State of one video. A guider is told a step and its timestep, which some schedulers round; noise levels are those of the
scheduler that the user has named. Knows no models.
"""

from dataclasses import dataclass, field
from typing import Any

from ..config.guidance import GuidanceConfig
from ..errors import InputError
from ..guidance.equations import Predictions, needs_uncond
from ..guidance.forecasts import Forecasts
from ..guidance.reuse import LEAST_STEPS, StepPasses
from ..models.noise_levels import noise_levels


@dataclass
class GuidedVideo:
    """The plan of a video's steps, and the predictions that forecasts start from.

    Attributes:
        plan: what each step computes, forecasts and does without.
        levels: the noise level of each step; empty if no forecast depends on it.
        step: the current one; −1 before the first.
        passes: those of the current step.
    """

    plan: tuple[StepPasses, ...]
    levels: tuple[float, ...]
    forecasts: Forecasts
    step: int = -1
    passes: StepPasses = field(default_factory=StepPasses)

    @property
    def is_last(self) -> bool:
        """Whether the current step is the video's last."""
        return self.step == len(self.plan) - 1

    def is_followed_by(self, step: int, num_steps: int) -> bool:
        """Return whether a step of so many can be one of this video; else it is another video's."""
        return self.step < step and num_steps == len(self.plan)

    def advance(self, step: int) -> None:
        """Go to a step. Raises InputError for one beyond the plan."""
        if step >= len(self.plan):
            raise InputError(
                f"S2Guidance: reuse: expected {len(self.plan)} steps, got more, as from schedulers that evaluate the "
                "model twice in a step; use another scheduler, or reuse exact"
            )
        self.step, self.passes = step, self.plan[step]
        if not self.forecasts.can_complete(self.passes):  # the guider was disabled in earlier steps
            self.passes = StepPasses(*("none" if how == "none" else "computed" for how in self.passes))

    def complete(self, computed: Predictions | None) -> Predictions:
        """Return the step's predictions, with forecasts of those that were not computed."""
        level = self.levels[self.step] if self.levels else 0.0
        return self.forecasts.complete(self.passes, level, computed)


def new_video(guidance: GuidanceConfig, scheduler: Any, *, step: int, num_steps: int, timestep: Any) -> GuidedVideo:
    """Return a video of which a guider sees `step` first, because it starts there or is the second transformer's.

    Args:
        scheduler: that of the pipeline; None if it is not known.
        num_steps: number of all steps.
        timestep: of the first step, as the scheduler has it.

    Raises:
        InputError: there are too few steps, or forecasts need noise levels and the scheduler does not have them.
    """
    if num_steps < LEAST_STEPS:
        raise InputError(
            f"S2Guidance: reuse: expected at least {LEAST_STEPS} steps, got {num_steps}: with so few, predictions "
            "change too much from step to step to be forecast; use more steps, or reuse exact"
        )
    spec, has_uncond = guidance.reuse.spec(), needs_uncond(guidance.cfg_scale)
    extrapolates = spec.order > 0 and (spec.cond_every > 1 or (spec.uncond_every > 1 and has_uncond))
    levels = _levels(scheduler, step, num_steps, timestep) if extrapolates else ()
    # which steps draw masks does not depend on the blocks
    steps = guidance.mask_schedule(num_blocks=0, seed=0, num_steps=num_steps, levels=levels, restart=step)
    return GuidedVideo(steps.passes([has_uncond] * num_steps), levels, Forecasts(spec))


def _levels(scheduler: Any, step: int, num_steps: int, timestep: Any) -> tuple[float, ...]:
    """Return the noise levels of all steps, of which this one has this timestep."""
    if scheduler is None:
        raise InputError(
            "S2Guidance: reuse of cond or uncond: expected the pipeline's scheduler, because they are forecast in the "
            "noise level, got none; set guider.scheduler = pipe.scheduler, or use reuse deviation"
        )
    timesteps, now = scheduler.timesteps.tolist(), float(timestep)
    first = timesteps.index(now) - step if now in timesteps else -1
    if first < 0 or first + num_steps != len(timesteps):  # it begins later if the pipeline keeps part of a video
        raise InputError(
            "S2Guidance: reuse: expected guider.scheduler to be the pipeline's, got one with other timesteps; set "
            "guider.scheduler = pipe.scheduler"
        )
    return noise_levels(scheduler)[first:]

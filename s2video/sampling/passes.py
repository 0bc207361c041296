"""What each step of a job computes and what it forecasts, under any guidance method. Knows no model."""

from ..config.guidance import GuidanceConfig
from ..guidance.equations import needs_uncond
from ..guidance.masks import MaskSchedule
from ..guidance.reuse import StepPasses
from .guiders import OtherGuidance


def step_passes(guidance: GuidanceConfig, masks: MaskSchedule) -> tuple[StepPasses, ...]:
    """Return the passes of every step of the job whose S² masks are `masks`."""
    first, second = map(needs_uncond, guidance.cfg_scales)
    split = masks.num_steps if masks.restart is None else masks.restart
    has_uncond = [first if step < split else second for step in range(masks.num_steps)]
    if guidance.method == "s2":
        return masks.passes(has_uncond)
    other = OtherGuidance(guidance, masks.num_steps)
    return masks.passes(has_uncond, [bool(other.masks(step)) for step in range(masks.num_steps)])

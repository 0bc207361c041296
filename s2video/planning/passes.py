"""Which passes the steps of a planned run compute, and what other ways to run would compute.

Arithmetic from the settings alone: no scheduler is loaded. Noise levels, on which a window in noise and the turn of two
transformers depend, are those of a flow schedule with the config's shift, so these two can be off by a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..config.guidance import GuidanceConfig
from ..guidance.masks import MaskSchedule
from ..guidance.reuse import PRESETS, StepPasses
from .work import SubWork

DEFAULT_SHIFT = 3.0  # if only the checkpoint's scheduler has it


class Kind(NamedTuple):
    """Steps of a run that compute the same passes, as a share of all steps, in [0, 1]."""

    share: float
    cond: bool
    uncond: bool
    sub: bool


def planned_passes(
    guidance: GuidanceConfig,
    *,
    num_blocks: int,
    num_steps: int,
    flow_shift: float | None = None,
    boundary_ratio: float | None = None,
) -> tuple[StepPasses, ...]:
    """Return what each step computes and forecasts.

    Args:
        flow_shift: of the noise schedule; None if only the checkpoint has it.
        boundary_ratio: noise level below which the second transformer is active; None if there is only one.
    """
    levels = _levels(num_steps, flow_shift or DEFAULT_SHIFT)
    restart = None
    if boundary_ratio is not None:
        restart = next((step for step, level in enumerate(levels) if level < boundary_ratio), None)
    masks = guidance.mask_schedule(num_blocks=num_blocks, seed=0, num_steps=num_steps, levels=levels, restart=restart)
    if guidance.method != "s2":
        from ..sampling.passes import step_passes  # imports torch

        return step_passes(guidance, masks)
    return masks.passes(_has_uncond(guidance, masks))


def kinds(passes: Sequence[StepPasses]) -> tuple[Kind, ...]:
    """Return the kinds of steps that a run has."""
    counts = Counter(tuple(how == "computed" for how in step) for step in passes)
    return tuple(Kind(count / len(passes), *computed) for computed, count in counts.items())


def other_ways(guidance: GuidanceConfig, num_blocks: int, num_steps: int, num_hints: int = 0) -> dict[str, float]:
    """Return the passes of a run under other presets of reuse, and of S² in place of CFG, over those of plain CFG.

    Passes through all blocks, with equal weight for each; `num_hints` more, those of control, are not in sub. Empty for
    other guidance methods. A pass that runs beside another on other ranks counts too.
    """
    if guidance.method != "s2":
        return {}
    sub = SubWork.expected(guidance.mask_spec(), num_blocks, share_prefix=guidance.share_prefix).passes
    sub *= num_blocks / (num_blocks + num_hints)
    found = {}
    for with_cfg in (True, False):
        for preset, spec in PRESETS.items():
            masks = replace(
                guidance.mask_schedule(
                    num_blocks=num_blocks, seed=0, num_steps=num_steps, levels=_levels(num_steps, DEFAULT_SHIFT)
                ),
                spec=guidance.mask_spec(),
                reuse=spec,
            )
            passes = masks.passes([with_cfg] * num_steps)
            count = [sum(getattr(step, name) == "computed" for step in passes) for name in StepPasses._fields]
            name = f"guidance.reuse={preset}" + ("" if with_cfg else " guidance.cfg_scale=1")
            found[name] = (count[0] + count[1] + count[2] * sub) / (2 * num_steps)
    return found


def _has_uncond(guidance: GuidanceConfig, masks: MaskSchedule) -> list[bool]:
    first, second = (scale != 1 for scale in guidance.cfg_scales)
    split = masks.num_steps if masks.restart is None else masks.restart
    return [first if step < split else second for step in range(masks.num_steps)]


def _levels(num_steps: int, shift: float) -> tuple[float, ...]:
    """Return σ of each step, evenly spaced and then shifted: σ' = sσ / (1 + (s − 1)σ)."""
    even = (1 - step / num_steps for step in range(num_steps))
    return tuple(shift * sigma / (1 + (shift - 1) * sigma) for sigma in even)

"""What a clip cost, from its sidecar: passes through the network, and seconds of denoising."""

from __future__ import annotations

from ..guidance.equations import needs_uncond
from ..planning.work import SubWork
from ..records.sidecar_model import Sidecar


def passes_of(sidecar: Sidecar) -> float | None:
    """Return what a clip cost in passes through the whole network, blocks counting alike; a sub pass from its fork on.

    None if the sidecar does not tell: of two transformers, only one of which has an uncond pass.
    """
    guidance, computed = sidecar.config.guidance, sidecar.computed
    if computed is not None:
        full = float(len(computed.cond) + len(computed.uncond))
    else:
        has_uncond = {needs_uncond(scale) for scale in guidance.cfg_scales}
        if len(has_uncond) > 1:
            return None
        full = float(sidecar.steps_taken * (2 if has_uncond.pop() else 1))
    masks: dict[int, list[tuple[int, ...]]] = {}
    for mask in sidecar.masks:
        masks.setdefault(mask.step, []).append(mask.dropped)
    if guidance.method == "slg":
        from ..sampling.guiders import OtherGuidance

        other = OtherGuidance(guidance, sidecar.steps_taken)
        steps = range(sidecar.steps_taken) if computed is None else computed.sub
        masks = {step: list(other.masks(step)) for step in steps}
    return full + sum(
        SubWork.of_masks(drawn, sidecar.num_blocks, share_prefix=guidance.share_prefix).passes
        for drawn in masks.values()
    )


def seconds_of(sidecar: Sidecar) -> float | None:
    """Return the seconds of a clip's denoising; None if a part of it was done by an earlier run."""
    return None if sidecar.resumed_after_step is not None else sidecar.timings.get("denoise_seconds")

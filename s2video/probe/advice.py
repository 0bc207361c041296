"""Settings that a probe's figures suggest, each by a stated rule and with the numbers behind it.

The rules are this project's own. Figures of one run cannot show whether videos get better; they show whether S² can act
as its paper describes, and which settings stay small next to what S² leaves to chance anyway. Knows no model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..guidance.reuse import PRESETS, Preset
from .measure import CountFigures, Figures

PUSH = 0.1  # beside CFG; at CFG's best λ, 0.1 to 0.2 was best on two networks of docs/evidence/mnist.md
PUSH_ALONE = 0.3  # in place of CFG, where 0.3 to 0.5 was best
FACTOR = 2.0  # a block is critical if its effect is over so many times the median block's
MOST_DROPPED = 2  # Table 4: with 3 of 24 blocks the gain is gone


@dataclass(frozen=True)
class Suggestion:
    """A setting, its value, and why."""

    setting: str
    value: Any
    why: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def advise(figures: Figures) -> list[Suggestion]:
    """Return suggestions, in the order in which they depend on each other."""
    dropped = suggest_count(figures)
    count = next(c for c in figures.counts if c.dropped == dropped.value)
    push = PUSH if figures.difference is not None else PUSH_ALONE
    return [
        suggest_never_drop([block.effect for block in figures.blocks]),
        dropped,
        Suggestion(
            "guidance.s2_push",
            push,
            f"a push of {PUSH:g} beside CFG, {PUSH_ALONE:g} without it, as was best on small networks; it means ω of "
            f"about {push / count.effect:.2g}, as |sub − cond| / |cond| is {count.effect:.3f}",
        ),
        suggest_reuse(figures, count, push),
    ]


def suggest_never_drop(effects: Sequence[float], factor: float = FACTOR) -> Suggestion:
    """The first block, as in the paper, and blocks whose effect is over `factor` times the median block's."""
    limit = factor * median(effects)
    critical = [block for block, effect in enumerate(effects) if effect > limit]
    return Suggestion(
        "guidance.never_drop",
        sorted({0, *critical}),
        f"the first block, and those with an effect above {limit:.3f}, {factor:g} times the median block's: "
        f"{', '.join(map(str, critical)) or 'none'}",
    )


def suggest_count(figures: Figures) -> Suggestion:
    """The largest number up to 2 whose sub predictions are no farther from cond than uncond is; else the smallest."""
    limit = figures.difference_effect
    few = [count for count in figures.counts if count.dropped <= MOST_DROPPED] or list(figures.counts[:1])
    near = few if limit is None else [count for count in few if count.effect <= limit]
    chosen = max(near, key=lambda c: c.dropped) if near else min(few, key=lambda c: c.dropped)
    if limit is None:
        why = "there is no uncond to compare with; Table 4 of the paper is best for 1 and 2 of 24 blocks"
    elif near:
        why = f"|sub − cond| / |cond| is {chosen.effect:.3f}, no more than |cond − uncond| / |cond|, {limit:.3f}"
    else:
        why = (
            f"the fewest; even so |sub − cond| / |cond| is {chosen.effect:.3f}, more than |cond − uncond| / |cond|, "
            f"{limit:.3f}: this network has little redundancy, and S² has little room"
        )
    return Suggestion("guidance.drop_count", chosen.dropped, why)


def suggest_reuse(figures: Figures, count: CountFigures, push: float) -> Suggestion:
    """The fastest preset whose error in a step is below what the draw of the mask decides in that step.

    All errors are over |cond|, with ω = push / effect: the luck of the draw is ω · |d − d'|; holding d for a step costs
    push · held_1; extrapolating cond − uncond costs (λ − 1) · |cond − uncond| · its linear error; and cond its own.
    """
    luck = push * count.apart / count.effect
    held = push * count.held_1
    errors: dict[Preset, float] = {"exact": 0.0, "deviation": held, "light": held, "fast": held + figures.cond.linear}
    if figures.difference is not None and figures.difference_effect is not None:
        uncond = abs(figures.cfg_scale - 1) * figures.difference_effect * figures.difference.linear
        errors |= {"light": errors["light"] + uncond, "fast": errors["fast"] + uncond}
    fitting = [preset for preset in PRESETS if errors[preset] <= luck]
    listed = ", ".join(f"{preset} {error:.4f}" for preset, error in errors.items() if preset != "exact")
    return Suggestion(
        "guidance.reuse",
        fitting[-1],
        f"error of a forecast step over |cond| at cfg_scale {figures.cfg_scale:g}: {listed}; the luck of the mask is "
        f"{luck:.4f}",
    )


def verdict(figures: Figures) -> str:
    """Return in words whether sub-networks err in one direction, as the paper assumes."""
    count = figures.counts[-1]
    share = count.common
    kind = "mostly by chance" if share <= 0.2 else f"{'partly' if share <= 0.5 else 'mostly'} in one direction"
    return (
        f"With {count.dropped} block(s) dropped, sub-networks err {kind}: the common part of their deviations is "
        f"{share:.2f} (1: all alike, 0: none), the mean cosine of two masks {count.cosine:.2f}."
    )

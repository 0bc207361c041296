"""Output of a plan as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

from .cards import Card
from .fits import SIZES_GB, Way, fitting
from .plan import Plan
from .step import GIGA


def as_table(plan: Plan, ways: list[Way] | None = None) -> str:
    """Return a table for people: the run, the legal meshes in aligned columns, and the refused ones.

    Args:
        ways: how the run can be placed in memory, from `ways_to_run`; adds what fits into which card.
    """
    step, card = plan.step, plan.card
    passes = f"cond in {plan.computed['cond']}, uncond in {plan.computed['uncond']}, "
    passes += f"sub ({step.sub.passes:.3g} of a pass) in {plan.computed['sub']} of {plan.num_steps} steps"
    memory = f" of {card.memory_gb:g} GB" if card.memory_gb is not None else ""
    source = "published values, the checkpoint was not read" if plan.published else "from the checkpoint's files"
    lines = [
        f"{plan.model} ({source}): {step.model.num_blocks} blocks, {step.num_tokens} tokens",
        f"{plan.world_size} × {card.name}{memory}, {min(plan.world_size, card.node_size)} per node; all values "
        "below are predicted, not measured",
        f"passes through the model: {passes}",
        *([f"note: {plan.note}"] if plan.note else []),
        "",
    ]
    rows = [("ring × ulysses × branch", "passes/step", "sent MB/step", "memory GB", "s/step", "note")]
    for candidate in plan.candidates:
        f = candidate.forecast
        rows.append(
            (
                str(candidate.degrees),
                f"{f.passes:.3f}",
                f"{f.sent_bytes / 1e6:.1f}",
                f"{f.memory_bytes / GIGA:.1f}",
                f"{f.seconds:.4g}",
                "; ".join(candidate.notes),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]
        lines.append("  ".join(cells).rstrip())
    lines += [
        "",
        "Values of the busiest rank; steps are means over the run; memory is the peak of text encoding, denoising and",
        "decoding. Not possible:",
    ]
    lines += [f"  {mesh}: {reason}" for mesh, reason in plan.refused]
    lines.append(f"  any other degrees: ring × ulysses × branch must equal {plan.world_size}, with branch 1 or 2")
    if ways:
        lines += ["", "What fits, with the mesh that needs least memory and settings for --set:"]
        lines += [f"  {size:g} GB: {_fitting(ways, size)}" for size in _sizes(card)]
    if plan.other_ways:
        lines += [
            "",
            "Other ways to run, by passes of a run over those of plain CFG; docs/method.md says what they lose:",
        ]
        lines += [f"  {passes:.3f}  {name}" for name, passes in plan.other_ways.items()]
    return "\n".join(lines)


def _sizes(card: Card) -> list[float]:
    return sorted({*SIZES_GB, *([] if card.memory_gb is None else [card.memory_gb])})


def _fitting(ways: list[Way], size: float) -> str:
    way = fitting(ways, size)
    if way is None:
        least = min(ways, key=lambda way: way.memory_gb)
        return f"nothing; {least} needs least, {least.memory_gb:.1f} GB while {least.phase}"
    return f"{way} ({way.memory_gb:.1f} GB while {way.phase}; {way.degrees})"


def as_json(plan: Plan, ways: list[Way] | None = None) -> str:
    """Return the same facts for programs, as one JSON object in SI units."""
    step = plan.step
    return json.dumps(
        {
            "predicted": True,
            "model": plan.model,
            "published_values": plan.published,
            "world_size": plan.world_size,
            "card": plan.card.model_dump(),
            "num_blocks": step.model.num_blocks,
            "num_tokens": step.num_tokens,
            "passes": {"cond": 1, "uncond": int(step.has_uncond), "sub": step.sub.passes},
            "num_steps": plan.num_steps,
            "num_active_steps": plan.computed["sub"],
            "computed_steps": dict(plan.computed),
            "passes_over_cfg": dict(plan.other_ways),
            "meshes": [
                {**c.degrees._asdict(), **asdict(c.forecast), "fits": c.fits, "notes": list(c.notes)}
                for c in plan.candidates
            ],
            "fits": [
                {"memory_gb": size, "settings": None if way is None else dict(way.settings)}
                for size in _sizes(plan.card)
                for way in (fitting(ways or [], size),)
            ],
            "refused": [{"mesh": str(mesh), "reason": reason} for mesh, reason in plan.refused],
        },
        indent=2,
        ensure_ascii=False,
    )

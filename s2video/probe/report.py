"""A probe's figures and suggestions as a table for people, as JSON, and as a picture."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..system.files import atomic_path
from .advice import Suggestion, verdict
from .measure import Figures, ForecastFigures

_BAR, _GAP, _HEIGHT, _MARGIN = 22, 4, 160, 56  # pixels of the picture


def as_table(figures: Figures, suggestions: list[Suggestion]) -> str:
    """Return all figures in words, a row for each block, and the suggestions."""
    steps = ", ".join(f"{point[0]} to {point[-1]}" for point in figures.steps)
    lines = [f"steps compared: {steps}; cfg_scale {figures.cfg_scale:g}; d is sub − cond", ""]
    rows = [("dropped", "|d|/|cond|", "cos to uncond−cond", "cos to others", "held 1 step", "2 steps")]
    for block in figures.blocks:
        to_uncond = "–" if block.to_uncond is None else f"{block.to_uncond:.2f}"
        row = (f"block {block.block}", f"{block.effect:.4f}", to_uncond, f"{block.to_others:.2f}")
        rows.append((*row, f"{block.held_1:.3f}", f"{block.held_2:.3f}"))
    for count in figures.counts:
        row = (f"{count.dropped} drawn", f"{count.effect:.4f}", "", f"{count.cosine:.2f}")
        rows.append((*row, f"{count.held_1:.3f}", f"{count.held_2:.3f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += ["", f"cond, error if {_errors(figures.cond)}"]
    if figures.difference is not None:
        lines.append(
            f"cond − uncond, {figures.difference_effect:.4f} of |cond|, error if {_errors(figures.difference)}"
        )
    lines += ["", verdict(figures), "", "suggested, to be tried:"]
    lines += [f"  {s.setting}: {s.value}  ({s.why})" for s in suggestions]
    return "\n".join(lines)


def _errors(errors: ForecastFigures) -> str:
    return f"held for a step {errors.held_1:.3f}, for two {errors.held_2:.3f}, extrapolated {errors.linear:.3f}"


def as_json(figures: Figures, suggestions: list[Suggestion], facts: dict[str, Any]) -> dict[str, Any]:
    """Return one JSON object: `facts` about the run, the figures, and the suggestions."""
    suggested = [suggestion.as_json() for suggestion in suggestions]
    return {**facts, "figures": figures.as_json(), "verdict": verdict(figures), "suggestions": suggested}


def draw(figures: Figures, suggestions: list[Suggestion], path: Path) -> None:
    """Write a PNG: the effect of every block as a bar, those not to be dropped in red, and |cond − uncond| as a line.

    Raises:
        InputError: if the file cannot be created.
    """
    never = next(s.value for s in suggestions if s.setting == "guidance.never_drop")
    width = 2 * _MARGIN + len(figures.blocks) * (_BAR + _GAP)
    image = Image.new("RGB", (max(width, 420), _HEIGHT + 2 * _MARGIN), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    limit = figures.difference_effect or 0.0
    scale = _HEIGHT / max(limit, *(block.effect for block in figures.blocks), 1e-9)
    base = _MARGIN + _HEIGHT
    for block in figures.blocks:
        left = _MARGIN + block.block * (_BAR + _GAP)
        colour = "#c0392b" if block.block in never else "#2c6fbb"
        canvas.rectangle((left, base - block.effect * scale, left + _BAR, base), fill=colour)
        canvas.text((left + _BAR / 2, base + 4), str(block.block), fill="black", font=font, anchor="ma")
    if limit:
        height = base - limit * scale
        canvas.line((_MARGIN, height, image.width - _MARGIN, height), fill="black", width=1)
        corner = (image.width - _MARGIN, height - 2)
        canvas.rectangle(canvas.textbbox(corner, "|cond - uncond|", font=font, anchor="rs"), fill="white")
        canvas.text(corner, "|cond - uncond|", fill="black", font=font, anchor="rs")
    canvas.text((_MARGIN, 16), "|sub - cond| / |cond| without each block; red: never_drop", fill="black", font=font)
    canvas.text((_MARGIN, base + 24), "dropped block", fill="black", font=font)
    canvas.text((_MARGIN - 6, _MARGIN), f"{_HEIGHT / scale:.2f}", fill="black", font=font, anchor="ra")
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")

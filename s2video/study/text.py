"""The results of a study in words and numbers, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..review.html import counted
from .bootstrap import MIN_PROMPTS
from .results import TOO_FEW, Cost, Difference, Results

NONE = "–"


class Line(NamedTuple):
    """The words of a table about one measure, or about the votes: of the base, of a setting, and their difference."""

    name: str
    base: str
    setting: str
    difference: str
    verdict: str
    is_decided: bool


def digits_of(values: Sequence[float], *, significant: int = 3) -> int:
    """Return how many decimals show the smallest of these values with that many significant digits."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    return min(6, max(0, significant - 1 - math.floor(math.log10(min(sizes))))) if sizes else 2


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """Return a number with a true minus sign; a dash for one that does not exist."""
    if value is None or not math.isfinite(value):
        return NONE
    shown = f"{value:{'+' if signed else ''}.{digits}f}"
    return shown.replace("-", "−")


def interval(difference: Difference, digits: int) -> str:
    """Return a difference with its interval, such as +0.012 (−0.003 to 0.027)."""
    value, low, high = difference.estimate
    if not math.isfinite(value):
        return NONE
    return f"{number(value, digits, signed=True)} ({number(low, digits)} to {number(high, digits)})"


def verdict(difference: Difference) -> str:
    """Return what a difference says; if it says nothing, with the number of prompts that would."""
    if difference.verdict != TOO_FEW:
        return difference.verdict
    if difference.num_clips == 0:
        return f"{TOO_FEW}: there are none"
    if difference.num_prompts < MIN_PROMPTS:
        return f"{TOO_FEW}: at least {MIN_PROMPTS} prompts are needed, there are {difference.num_prompts}"
    if difference.needed is None:
        return TOO_FEW
    return f"{TOO_FEW}: about {difference.needed:,} prompts would be needed, there are {difference.num_prompts}"


def row_digits(difference: Difference) -> int:
    """Return the decimals of a difference: two digits of half the interval's width, or of the value."""
    value, low, high = difference.estimate
    return digits_of([(high - low) / 2 if high > low else value], significant=2)


def cost_cells(cost: Cost) -> tuple[str, str, str]:
    """Return passes, seconds, and the share of the base's passes."""
    return number(cost.passes, 1), number(cost.seconds, 2), number(cost.share, 2)


def lines_of(results: Results, setting: str) -> list[Line]:
    """Return the lines of the table that compares a setting with the base."""
    lines = []
    for row in results.rows:
        difference = next(each for each in row.differences if each.setting == setting)
        digits = row_digits(difference)
        means = [number(row.means[name], digits) for name in (results.base, setting)]
        lines.append(_line(row.measure, means, difference, digits))
    for votes in results.preferences:
        if votes.setting == setting:
            name = f"votes: {votes.wins} for {setting}, {votes.same} the same, {votes.losses} for {results.base}"
            lines.append(_line(name, [NONE, NONE], votes.difference, 2))
    return lines


def _line(name: str, means: Sequence[str], difference: Difference, digits: int) -> Line:
    base, setting = means
    return Line(name, base, setting, interval(difference, digits), verdict(difference), difference.is_decided)


def as_text(results: Results) -> str:
    """Return the tables for a terminal."""
    lines = [
        f"{counted(results.num_prompts, 'prompt')}, {counted(results.num_clips, 'clip')} of each setting; "
        f"{results.base} is the base",
        "",
    ]
    costs = [[cost.setting, str(cost.videos), *cost_cells(cost)] for cost in results.costs]
    lines += _table(["setting", "videos", "passes", "seconds", "passes / base"], costs, str.rjust)
    for cost in results.costs[1:]:
        rows = [[line.name, line.base, line.difference, line.verdict] for line in lines_of(results, cost.setting)]
        if rows:
            head = ["measure", results.base, f"{cost.setting} − {results.base} (95 %)", "verdict"]
            lines += ["", *_table(head, rows, str.ljust)]
    lines += [""] * bool(results.notes) + [f"note: {note}" for note in results.notes]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: Callable[[str, int], str]) -> list[str]:
    """Return lines with columns of even width; `align` pads the cells after the first one."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else align(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]

"""Figures of an evaluation: shares, bootstrap intervals, paired differences, the bars, and the table that is printed.

Knows scores only (`detector.score` of each clip), neither pixels nor models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .world import ATTRIBUTES

Scores = Mapping[str, bool | float]

COLUMNS = (*ATTRIBUTES, "background", "all", "perfect")
METHOD_NAMES = {"cfg": "CFG", "s2": "S²"}
RESAMPLES = 10_000
# (things, what is measured, least share): what CFG at the best λ has to reach
BARS = ((1, "all", 0.95), (1, "weakest", 0.75), (2, "all", 0.75))


def column(clips: Sequence[Scores], name: str) -> np.ndarray:
    return np.array([float(scores[name]) for scores in clips])


def interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, clips being drawn with replacement."""
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def choose_scale(grid: Mapping[float, Mapping[int, Sequence[Scores]]]) -> float:
    """The λ with most attributes right, every number of things counting alike; of equals the smallest."""

    def mean(scale: float) -> float:
        shares = [column(clips, "all").mean() for clips in grid[scale].values()]
        return round(float(np.mean(shares)), 9)  # the order of a sum must not break a tie

    return min(grid, key=lambda scale: (-mean(scale), scale))


def check_bars(report: Mapping[tuple[str, int], Sequence[Scores]]) -> list[dict[str, Any]]:
    """Each bar with what CFG reached; a bar that was not measured is not met."""
    rows = []
    for num_things, what, least in BARS:
        reached = None
        clips = report.get(("cfg", num_things))
        if clips:
            names = ("all",) if what == "all" else (*ATTRIBUTES, "background")
            reached = min(float(column(clips, name).mean()) for name in names)
        met = reached is not None and reached >= least
        rows.append({"num_things": num_things, "what": what, "least": least, "reached": reached, "met": met})
    return rows


def summarize(report: Mapping[tuple[str, int], Sequence[Scores]], seed: int) -> list[dict[str, Any]]:
    """Rows of the table: one for each method and number of things, and the paired difference S² − CFG."""
    rows: list[dict[str, Any]] = []
    for num_things in dict.fromkeys(things for _, things in report):
        methods = [method for method, things in report if things == num_things]
        values = {m: {name: column(report[m, num_things], name) for name in COLUMNS} for m in methods}
        labels = {METHOD_NAMES[m]: values[m] for m in methods}
        if set(methods) == {"cfg", "s2"}:
            labels["S² − CFG"] = {name: values["s2"][name] - values["cfg"][name] for name in COLUMNS}
        for label, columns in labels.items():
            means = {name: float(value.mean()) for name, value in columns.items()}
            ends = interval(columns["all"], seed)
            rows.append({"method": label, "num_things": num_things, **means, "interval": ends})
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Percentages; differences carry their sign."""
    head = ["method", "things", *ATTRIBUTES, "background", "all", "95 % interval", "all right"]
    lines = [head]
    for row in rows:
        form = "{:+.1f}" if "−" in row["method"] else "{:.1f}"
        cells = {name: form.format(100 * row[name]) for name in COLUMNS}
        ends = " to ".join(form.format(100 * end) for end in row["interval"])
        shown = [cells[name] for name in (*ATTRIBUTES, "background", "all")]
        lines.append([row["method"], str(row["num_things"]), *shown, ends, cells["perfect"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def describe(figures: Mapping[str, Any], captions: str) -> str:
    """What is printed: the grid, the table, the bars."""
    lines = [""]
    for row in figures["grid"]:
        lines.append(f"grid: CFG λ = {row['cfg_scale']:g}, things {row['num_things']}: all {100 * row['all']:.1f} %")
    lines += [
        f"λ = {figures['cfg_scale']:g}; % of attributes right, {captions} for each number of things",
        "",
        format_table(figures["summary"]),
        "",
    ]
    for bar in figures["bars"]:
        what = "all attributes" if bar["what"] == "all" else "the weakest attribute"
        reached = "not measured" if bar["reached"] is None else f"{100 * bar['reached']:.1f} %"
        lines.append(
            f"bar: CFG, things {bar['num_things']}, {what} at least {100 * bar['least']:.0f} %: {reached}, "
            + ("met" if bar["met"] else "not met")
        )
    return "\n".join(lines)

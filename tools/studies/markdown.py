"""The study's numbers as Markdown tables. Knows the summary's JSON only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .summary import SHARES, SWAPS

Entry = Mapping[str, Any]
NAMES = {
    "color": "colour",
    "perfect": "all right",
    "static_flicker": "static flicker",
    "num_extra": "extra things",
    "frechet": "Fréchet",
}
PERCENT = {*SHARES, *SWAPS}
PER_MILLE = {"flicker", "static_flicker"}
LOOKS = ("frechet", "flicker", "static_flicker", "saturation", "num_extra")
SPREAD_NAMES = {"masks": "masks, one noise", "seeds": "noise, one mask seed"}
GROUPS = {"1": "one thing", "2": "two things", "both": "all captions"}


def tables(summary: Mapping[str, Any]) -> str:
    """All of them, in the order of the study's parts."""
    parts = summary["parts"]
    lines: list[str] = []
    for group in ("1", "2"):
        lines += _titled(f"% of attributes right, {GROUPS[group]}", _means(parts["main"], group, SHARES))
        lines += _titled(f"The same less CFG's, {GROUPS[group]}", _differences(parts["main"], group, SHARES))
    lines += _titled("% of clips in which two things have changed an attribute", _means(parts["main"], "2", SWAPS))
    lines += _titled("The same less CFG's", _differences(parts["main"], "2", SWAPS))
    lines += _titled("Looks", _means(parts["main"], "both", LOOKS))
    lines += _titled("The same less CFG's", _differences(parts["main"], "both", LOOKS))
    alone = [entry for entry in parts["main"] if "less_cond" in entry.get("both", {})]
    if alone:  # older files have no such rows
        for group in ("1", "2"):
            title = f"S² in place of CFG: % of attributes right less cond's, {GROUPS[group]}"
            lines += _titled(title, _differences(alone, group, SHARES, from_base="less_cond"))
        lines += _titled("The same: looks less cond's", _differences(alone, "both", LOOKS, from_base="less_cond"))
    for part, title in (
        ("naive", "Naive S²: masks a step"),
        ("drop", "Blocks dropped"),
        ("first", "Which block is dropped"),
        ("window", "Window"),
        ("grid", "λ and ω"),
    ):
        lines += _titled(f"{title}: % of attributes right, and less CFG's", _short(parts[part]))
    lines += _titled("λ and ω: % of attributes right, less CFG's at the same λ", _same_scale(parts["grid"]))
    lines += _titled("Spread of % of attributes right", _spread(summary.get("spread", {})))
    return "\n".join(lines)


def _titled(title: str, rows: Sequence[str]) -> list[str]:
    return ["", f"**{title}**", "", *rows]


def _table(entries: Sequence[Entry], head: Sequence[str], cells: Callable[[Entry], list[str]]) -> list[str]:
    if not any("both" in entry for entry in entries):
        return ["Not run yet."]
    lines = [_row(head), _row(["---"] * len(head))]
    for entry in entries:
        if "both" in entry:
            lines.append(_row([entry["title"], *cells(entry)]))
        else:
            made = f"not run yet ({entry['made']} of {entry['wanted']} clips)" if entry["made"] else "not run yet"
            lines.append(_row([entry["title"], made, *[""] * (len(head) - 2)]))
    return lines


def _means(entries: Sequence[Entry], group: str, measures: Sequence[str]) -> list[str]:
    def cells(entry: Entry) -> list[str]:
        judged = entry[group]
        evaluations = f"{judged['evaluations']:.1f}" if "evaluations" in judged else "–"
        return [evaluations, *(number(name, judged["mean"].get(name)) for name in measures)]

    return _table(entries, ["method", "evaluations", *map(_heading, measures)], cells)


def _differences(
    entries: Sequence[Entry], group: str, measures: Sequence[str], *, from_base: str = "difference"
) -> list[str]:
    def cells(entry: Entry) -> list[str]:
        changes = entry[group].get(from_base, {})
        return [number(name, changes.get(name), signed=True) for name in measures]

    others = [entry for entry in entries if entry["at"] != "cfg"]
    return _table(others, ["method", *map(_heading, measures)], cells)


def _short(entries: Sequence[Entry]) -> list[str]:
    def cells(entry: Entry) -> list[str]:
        both = entry["both"]
        change = both.get("difference", {}).get("all")
        looks = [number(name, both["mean"][name]) for name in ("static_flicker", "saturation")]
        mean = number("all", both["mean"]["all"])
        return [f"{both['evaluations']:.1f}", mean, number("all", change, signed=True), *looks]

    return _table(
        entries, ["what differs", "evaluations", "all", "less CFG's", "static flicker, ‰", "saturation"], cells
    )


def _same_scale(entries: Sequence[Entry]) -> list[str]:
    """λ down, ω across. λ = 1 is cond alone, without uncond."""
    changes = {
        tuple(entry["at"]): entry["both"]["same_scale"]["all"]
        for entry in entries
        if "same_scale" in entry.get("both", {})
    }
    if not changes:
        return ["Not run yet."]
    scales, omegas = (sorted({at[i] for at in changes}) for i in (0, 1))
    head = ["λ", *(f"ω = {omega:g}" for omega in omegas)]
    lines = [_row(head), _row(["---"] * len(head))]
    for scale in scales:
        cells = [number("all", changes.get((scale, omega)), signed=True) for omega in omegas]
        lines.append(_row([f"{scale:g}", *cells]))
    return lines


def _spread(spreads: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    if not spreads:
        return ["Not run yet."]
    head = ["what differs", "mean", "SD of the means", "coefficient of variation, %", "SD of a clip"]
    lines = [_row(head), _row(["---"] * len(head))]
    for part, found in spreads.items():
        numbers = [100 * (found["all"][key] or 0.0) for key in ("mean", "of_means", "variation", "of_clips")]
        lines.append(_row([SPREAD_NAMES[part], *(f"{value:.2f}" for value in numbers)]))
    return lines


def number(measure: str, estimate: Sequence[float | None] | None, *, signed: bool = False) -> str:
    """A value with its interval, in the measure's unit."""
    if estimate is None or any(value is None for value in estimate):
        return "–"
    factor, digits = (100, 1) if measure in PERCENT else (1000, 2) if measure in PER_MILLE else (1, 3)
    sign = "+" if signed else ""
    value, low, high = (
        f"{factor * value:{sign}.{digits}f}".replace("-", "−") for value in estimate if value is not None
    )
    return f"{value} ({low} to {high})"


def _heading(measure: str) -> str:
    name = NAMES.get(measure, measure.replace("color", "colour"))
    return f"{name}, ‰" if measure in PER_MILLE else name


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

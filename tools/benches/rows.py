"""What the sections of `bench.py` hand back, and the one table made of it. Knows no section."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

HEAD = ("| what | ratio | quartiles | held against |", "|---|---|---|---|")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        ratio: the median of what was measured, or a count.
        spread: its lower and upper quartile; None for counts, which come out the same every time.
        held_against: what the ratio should be, by arithmetic or by a target, and what the paper says.
    """

    what: str
    ratio: float
    spread: tuple[float, float] | None
    held_against: str


@dataclass(frozen=True)
class Section:
    """Lines of the table, and every number behind them, ready for JSON."""

    rows: Sequence[Row]
    raw: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "raw": dict(self.raw)}


def measured(what: str, over: Sequence[float], under: Sequence[float], held_against: str) -> Row:
    """The ratio of two ways that took turns: each repeat gives one, for neighbours in time share the machine's mood."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(what, middle, (low, high), held_against)


def counted(what: str, ratio: float, held_against: str) -> Row:
    return Row(what, ratio, None, held_against)


def table(sections: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Markdown, a line for every row, and one for each section of `titles` that was not run.

    Args:
        sections: as `Section.as_json` gives them, by name.
        titles: name of a section -> what it is about, in the table's order.
    """
    lines = list(HEAD)
    for name, title in titles.items():
        if name not in sections:
            lines.append(f"| {title} | not run | | |")
            continue
        for row in sections[name]["rows"]:
            spread = "counted" if row["spread"] is None else " to ".join(f"{value:.3f}" for value in row["spread"])
            lines.append(f"| {row['what']} | {row['ratio']:.3f} | {spread} | {row['held_against']} |")
    return "\n".join(lines)

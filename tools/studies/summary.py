"""The numbers of a study, from its cells' files alone. Knows no model and renders nothing.

What is compared is paired by caption, and all differences are from plain CFG at the config's λ on the same captions.
A cell that is not whole has no numbers.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from shapes.features import FrechetReference
from shapes.world import ATTRIBUTES

from s2video.errors import InputError
from s2video.study.bootstrap import Bootstrap, Estimate, Sample, estimate

from .cells import ALONE
from .clip_file import read_records
from .spread import spread

Row = Mapping[str, Any]
SHARES = (*ATTRIBUTES, "background", "all", "perfect")
SWAPS = tuple(f"swapped {name}" for name in ATTRIBUTES)
PIXELS = ("flicker", "static_flicker", "saturation", "num_extra")
MEASURES = (*SHARES, *SWAPS, *PIXELS)
# The point of a part that its others are held against; the grid's is the config's own λ without S²
BASES = {"main": "cfg", "naive": "cfg", "drop": 0, "first": "cfg", "window": "cfg"}
SPREADS = ("masks", "seeds")
GROUPS = {"1": 1, "2": 2, "both": None}  # number of things in a caption; both together


@dataclass(frozen=True)
class Made:
    """A cell as made so far."""

    title: str
    rows: list[dict[str, Any]]
    wanted: int

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == self.wanted


def value_of(row: Row, measure: str) -> float:
    """NaN where the clip has no such value."""
    if measure in SHARES:
        return float(row["scores"][measure])
    found = row["swapped"].get(measure.removeprefix("swapped ")) if measure in SWAPS else row[measure]
    return math.nan if found is None else float(found)


def read_cell(work: Path, name: str, title: str) -> Made:
    """The cell's rows in order. Missing files are cells without rows."""
    found = read_records(work / f"{name}.jsonl")
    if found is None:
        return Made(title, [], 1)
    header, rows = found
    counts, cell = header["counts"], header["cell"]
    each = {"main": counts["captions"], "side": counts["side_captions"], "reference": counts["reference"]}
    return Made(
        title, sorted(rows, key=lambda row: (row["take"], row["index"])), 2 * each[cell["clips"]] * len(cell["takes"])
    )


def summarize(work: Path, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Return everything that tables and plots show, as JSON.

    Raises:
        InputError: if there is no study in the folder.
    """
    path = work / "plan.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: run tools/study.py with this --work first")
    plan = json.loads(path.read_text(encoding="utf-8"))
    parts = plan.pop("parts")
    truth, reference = (_Entry.read(work, point) for point in parts.pop("truth"))
    frechet = FrechetReference(_features(reference.cell.rows)) if reference.cell.is_whole else None
    judge = _Judge(resamples, seed, frechet, cfg_scale=plan["config"]["guidance"]["cfg_scale"])
    summary: dict[str, Any] = {**plan, "resamples": resamples, "parts": {}}
    for part, points in parts.items():
        entries = [_Entry.read(work, point) for point in points]
        if part in SPREADS and all(entry.cell.is_whole for entry in entries):
            summary.setdefault("spread", {})[part] = _spread_of(entries)
        if part == "main":
            entries.append(truth)
        judge.judge(part, entries)
        summary["parts"][part] = [entry.values for entry in entries]
    return _without_nan(summary)


@dataclass(frozen=True)
class _Entry:
    """A point of a part: its cell, and what the summary says of it, which `_Judge` completes."""

    cell: Made
    values: dict[str, Any]

    @classmethod
    def read(cls, work: Path, point: Mapping[str, Any]) -> "_Entry":
        cell = read_cell(work, point["cell"], point["title"])
        return cls(cell, {**point, "made": len(cell.rows), "wanted": cell.wanted})

    def rows(self, num_things: int | None) -> list[dict[str, Any]]:
        """Return the clips of one number of things; of both for None."""
        return [row for row in self.cell.rows if num_things in (None, row["num_things"])]


@dataclass(frozen=True)
class _Judge:
    """Compares the entries of a part with each other.

    Attributes:
        frechet: the distance to the reference clips; None without those.
        cfg_scale: λ of the config, at which plain CFG is what the grid is compared with.
    """

    resamples: int
    seed: int
    frechet: FrechetReference | None
    cfg_scale: float

    def judge(self, part: str, entries: Sequence[_Entry]) -> None:
        """Add to each complete entry its numbers, by group of captions."""
        base_at = [self.cfg_scale, 0.0] if part == "grid" else BASES.get(part)
        base = next((i for i, entry in enumerate(entries) if entry.values["at"] == base_at), None)
        has_base = base is not None and entries[base].cell.is_whole
        for group, num_things in GROUPS.items():
            sets = [entry.rows(num_things) for entry in entries]
            compare = _Comparison(sets, resamples=self.resamples, seed=self.seed)
            base_rows = sets[base] if has_base else []
            for entry, rows in zip(entries, sets, strict=True):
                if entry.cell.is_whole:
                    entry.values[group] = compare.judge(rows, base_rows)
            if part == "grid":
                _add_same_scale(entries, sets, group, compare)
            if part == "main":
                _add_less_cond(entries, sets, group, compare)
            if part == "main" and group == "both" and self.frechet is not None:
                _add_frechet(entries, compare, self.frechet, base_rows)


class _Comparison:
    """Several sets of clips of the same captions."""

    def __init__(self, sets: Sequence[Sequence[Row]], *, resamples: int, seed: int) -> None:
        captions = dict.fromkeys(row["caption"] for rows in sets for row in rows)
        self._number = {caption: i for i, caption in enumerate(captions)}
        self.bootstrap = Bootstrap(max(1, len(captions)), resamples=resamples, seed=seed)

    def captions(self, rows: Sequence[Row]) -> np.ndarray:
        return np.array([self._number[row["caption"]] for row in rows], int)

    def judge(self, rows: Sequence[Row], base: Sequence[Row]) -> dict[str, Any]:
        """Means with intervals, differences from `base` where there is one, and what a clip cost."""
        samples = {name: Sample(_values(rows, name), self.captions(rows)) for name in MEASURES}
        judged: dict[str, Any] = {"mean": {name: self.bootstrap.mean(sample) for name, sample in samples.items()}}
        if all("evaluations" in row for row in rows):
            judged["evaluations"] = float(np.mean([row["evaluations"] for row in rows]))
        if base:
            judged["difference"] = {
                name: self.bootstrap.difference(sample, Sample(_values(base, name), self.captions(base)))
                for name, sample in samples.items()
            }
        return judged


def _add_same_scale(entries: Sequence[_Entry], sets: Sequence[Sequence[Row]], group: str, compare: _Comparison) -> None:
    """Add to each entry with S² its difference from CFG at its own λ, next to that from CFG at the config's."""
    plain = {
        entry.values["at"][0]: rows
        for entry, rows in zip(entries, sets, strict=True)
        if not entry.values["at"][1] and group in entry.values
    }
    for entry, rows in zip(entries, sets, strict=True):
        scale, omega = entry.values["at"]
        if group in entry.values and scale in plain and omega:
            entry.values[group]["same_scale"] = compare.judge(rows, plain[scale])["difference"]


def _add_less_cond(entries: Sequence[_Entry], sets: Sequence[Sequence[Row]], group: str, compare: _Comparison) -> None:
    """Add to S² in place of CFG its difference from cond alone, next to that from CFG."""
    rows = {entry.values["at"]: rows for entry, rows in zip(entries, sets, strict=True) if group in entry.values}
    for entry in entries:
        at = entry.values["at"]
        if at in ALONE and at in rows and "cond" in rows:
            entry.values[group]["less_cond"] = compare.judge(rows[at], rows["cond"])["difference"]


def _add_frechet(
    entries: Sequence[_Entry], compare: _Comparison, reference: FrechetReference, base: Sequence[Row]
) -> None:
    """Add to each complete entry its Fréchet distance, and the difference from that of `base` if there is one."""

    def of(rows: Sequence[Row]) -> tuple[float, np.ndarray]:
        return compare.bootstrap.of_sets(compare.captions(rows), partial(reference.distance, _features(rows)))

    base_of = of(base) if base else None
    of_cond = next((of(e.cell.rows) for e in entries if e.values["at"] == "cond" and e.cell.is_whole), None)
    for entry in entries:
        if entry.cell.is_whole:
            value, resampled = of(entry.cell.rows)
            both = entry.values["both"]
            both["mean"]["frechet"] = estimate(value, resampled)
            if base_of is not None:
                both["difference"]["frechet"] = estimate(value - base_of[0], resampled - base_of[1])
            if of_cond is not None and "less_cond" in both:
                both["less_cond"]["frechet"] = estimate(value - of_cond[0], resampled - of_cond[1])


def _spread_of(entries: Sequence[_Entry]) -> dict[str, dict[str, float]]:
    """Return the spread of each share over the runs."""
    return {measure: spread([_values(entry.cell.rows, measure) for entry in entries])._asdict() for measure in SHARES}


def _values(rows: Sequence[Row], measure: str) -> np.ndarray:
    return np.array([value_of(row, measure) for row in rows], float)


def _features(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["features"] for row in rows], float)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for what does not exist."""
    if isinstance(value, Estimate | list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value

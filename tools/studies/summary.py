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

from .bootstrap import Bootstrap, Estimate, Sample, estimate, spread
from .clip_file import read_records

Row = Mapping[str, Any]
SHARES = (*ATTRIBUTES, "background", "all", "perfect")
SWAPS = tuple(f"swapped {name}" for name in ATTRIBUTES)
PIXELS = ("flicker", "static_flicker", "saturation", "num_extra")
MEASURES = (*SHARES, *SWAPS, *PIXELS)
# The point of a part that its others are held against; the grid's is the config's own λ without S²
BASES = {"main": "cfg", "naive": "cfg", "drop": 0, "first": "cfg", "window": "cfg"}
SPREADS = ("masks", "seeds")


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
    """Everything that tables and plots show, as JSON.

    Raises:
        InputError: there is no study in the folder.
    """
    path = work / "plan.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: run tools/study.py with this --work first")
    plan = json.loads(path.read_text(encoding="utf-8"))
    parts = plan.pop("parts")
    truth, reference = (read_cell(work, point["cell"], point["title"]) for point in parts.pop("truth"))
    frechet = FrechetReference(_features(reference.rows)) if reference.is_whole else None
    summary: dict[str, Any] = {**plan, "resamples": resamples, "parts": {}}
    for part, points in parts.items():
        cells = [read_cell(work, point["cell"], point["title"]) for point in points]
        base_at = [plan["config"]["guidance"]["cfg_scale"], 0.0] if part == "grid" else BASES.get(part)
        base = next((c for c, p in zip(cells, points, strict=True) if p["at"] == base_at), None)
        entries = [{**point, "made": len(c.rows), "wanted": c.wanted} for point, c in zip(points, cells, strict=True)]
        if part == "main":
            cells.append(truth)
            entries.append({"at": "truth", "title": truth.title, "made": len(truth.rows), "wanted": truth.wanted})
        for things in (1, 2, None):
            some = [[row for row in cell.rows if things in (None, row["num_things"])] for cell in cells]
            compare = _Comparison(some, resamples=resamples, seed=seed)
            base_rows = [] if base is None or not base.is_whole else some[cells.index(base)]
            group = "both" if things is None else str(things)
            for cell, rows, entry in zip(cells, some, entries, strict=True):
                if cell.is_whole:
                    entry[group] = compare.judge(rows, base_rows)
            if part == "grid":
                _add_same_scale(entries, some, group, compare)
            if part == "main" and things is None and frechet is not None:
                _add_frechet(entries, cells, some, compare, frechet, base_rows)
        summary["parts"][part] = entries
        if part in SPREADS and all(cell.is_whole for cell in cells):
            summary.setdefault("spread", {})[part] = {
                measure: spread([_values(cell.rows, measure) for cell in cells])._asdict() for measure in SHARES
            }
    return _without_nan(summary)


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


def _add_same_scale(
    entries: Sequence[dict[str, Any]], some: Sequence[Sequence[Row]], group: str, compare: _Comparison
) -> None:
    """Beside the difference from CFG at the config's λ, that from CFG at the entry's own."""
    plain = {entry["at"][0]: rows for entry, rows in zip(entries, some, strict=True) if not entry["at"][1]}
    whole = {entry["at"][0] for entry in entries if not entry["at"][1] and group in entry}
    for entry, rows in zip(entries, some, strict=True):
        scale, omega = entry["at"]
        if group in entry and scale in whole and omega:
            entry[group]["same_scale"] = compare.judge(rows, plain[scale])["difference"]


def _add_frechet(
    entries: Sequence[dict[str, Any]],
    cells: Sequence[Made],
    some: Sequence[Sequence[Row]],
    compare: _Comparison,
    reference: FrechetReference,
    base: Sequence[Row],
) -> None:
    def of(rows: Sequence[Row]) -> tuple[float, np.ndarray]:
        return compare.bootstrap.of_sets(compare.captions(rows), partial(reference.distance, _features(rows)))

    base_of = of(base) if base else None
    for cell, rows, entry in zip(cells, some, entries, strict=True):
        if cell.is_whole:
            value, resampled = of(rows)
            entry["both"]["mean"]["frechet"] = estimate(value, resampled)
            if base_of is not None:
                change = estimate(value - base_of[0], resampled - base_of[1])
                entry["both"]["difference"]["frechet"] = change


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

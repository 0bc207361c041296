"""The study's numbers as pictures, and frames of its clips. Knows the summary's JSON and the kept stills only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import remark
from PIL import Image
from shapes.contact_sheet import Cell, Strip, write_sheet
from tools_extra import tools_extra
from torch import Tensor

from s2video.system.files import atomic_path

from .summary import read_cell

with tools_extra():
    import matplotlib
    import matplotlib.pyplot as plt

matplotlib.use("Agg")

MARKERS = "os^Dv*P"
INK, TRUTH, HOT = "#1f4e79", "#9aa5b1", "#c0392b"
SHOWN = {"main-cfg": "CFG", "main-s2": "S²"}  # in this order from the top
Entry = Mapping[str, Any]


def draw_all(summary: Mapping[str, Any], work: Path, folder: Path) -> list[Path]:
    """Every picture whose cells are whole, as study-*.png in `folder`; returns what was drawn."""
    parts = {part: [entry for entry in entries if "both" in entry] for part, entries in summary["parts"].items()}
    is_whole = {part: len(parts[part]) == len(entries) for part, entries in summary["parts"].items()}
    drawn = []
    if any("evaluations" in entry["both"] for entry in parts["main"]):
        drawn.append(pareto(parts["main"], folder / "study-pareto.png"))
    if is_whole["grid"]:
        drawn.append(heat_maps(parts["grid"], folder / "study-grid.png"))
    if all(is_whole[part] for part in ("drop", "first", "window")):
        drawn.append(settings(parts, folder / "study-settings.png"))
    if is_whole["masks"] and is_whole["seeds"]:
        drawn.append(spreads(parts, folder / "study-spread.png"))
    if sheet(work, folder / "study-frames.png"):
        drawn.append(folder / "study-frames.png")
    return drawn


def pareto(entries: Sequence[Entry], path: Path) -> Path:
    """% of attributes right against what a clip cost, each number of things apart; the line joins what none betters."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, group, title in zip(axes, ("1", "2"), ("one thing", "two things"), strict=True):
        front: list[tuple[float, float]] = []
        made = [(entry, m) for entry, m in zip(entries, MARKERS, strict=False) if "evaluations" in entry[group]]
        for entry, marker in sorted(made, key=lambda pair: pair[0][group]["evaluations"]):
            value, low, high = (100 * x for x in entry[group]["mean"]["all"])
            cost = entry[group]["evaluations"]
            color = HOT if entry["at"] in ("s2", "s2-strong") else INK
            errors = [[value - low], [high - value]]
            style = {"color": color, "markerfacecolor": "none", "capsize": 3, "linewidth": 0.8, "label": entry["title"]}
            axis.errorbar(cost, value, errors, fmt=marker, **style)
            if not front or value > front[-1][1]:
                front.append((cost, value))
        axis.plot(*zip(*front, strict=True), color=TRUTH, linewidth=1, drawstyle="steps-post", zorder=0)
        axis.set(xlabel="passes through the network, a clip", ylabel="% of attributes right", title=title)
        axis.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def heat_maps(entries: Sequence[Entry], path: Path) -> Path:
    """λ down, ω across."""
    lambdas, omegas = (sorted({entry["at"][i] for entry in entries}) for i in (0, 1))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    panels = (
        ("all", 100, "% of attributes right"),
        ("saturation", 1, "saturation"),
        ("static_flicker", 1000, "static flicker, ‰"),
    )
    for axis, (measure, factor, title) in zip(axes, panels, strict=True):
        found = {tuple(entry["at"]): entry["both"]["mean"][measure][0] for entry in entries}
        numbers = np.array([[found[scale, w] for w in omegas] for scale in lambdas], float) * factor
        axis.imshow(numbers, cmap="viridis", aspect="auto")
        middle = (np.nanmin(numbers) + np.nanmax(numbers)) / 2
        for i, j in np.ndindex(numbers.shape):
            color = "white" if numbers[i, j] < middle else "black"
            axis.text(j, i, f"{numbers[i, j]:.3g}", ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(omegas)), [f"{w:g}" for w in omegas])
        axis.set_yticks(range(len(lambdas)), [f"{scale:g}" for scale in lambdas])
        axis.set(xlabel="ω", ylabel="λ", title=title)
    return _save(figure, path)


def settings(parts: Mapping[str, Sequence[Entry]], path: Path) -> Path:
    """Attributes right less CFG's, over the number of blocks dropped, the window, and which block is dropped."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
    titles = {"drop": "blocks dropped", "window": "part of the denoising", "first": "block dropped"}
    for axis, (part, title) in zip(axes, titles.items(), strict=True):
        entries = [entry for entry in parts[part] if entry["at"] != "cfg"]
        changes = 100 * np.array([entry["both"]["difference"]["all"] for entry in entries], float)
        places = np.arange(len(entries))
        errors = np.abs(changes[:, 1:] - changes[:, :1]).T
        axis.errorbar(places, changes[:, 0], errors, fmt="o", color=INK, capsize=3, linewidth=1)
        axis.axhline(0, color=TRUTH, linewidth=1)
        axis.set_xticks(places, [_label(entry["at"]) for entry in entries])
        axis.set_xlabel(title)
    axes[0].set_ylabel("% of attributes right, less CFG's")
    return _save(figure, path)


def spreads(parts: Mapping[str, Sequence[Entry]], path: Path) -> Path:
    """Each run's % of attributes right: over mask seeds at one noise, and over noise seeds at one mask seed."""
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for place, part in enumerate(("masks", "seeds")):
        means = [100 * entry["both"]["mean"]["all"][0] for entry in parts[part]]
        axis.plot([place] * len(means), means, "o", color=INK, alpha=0.6)
    axis.set_xticks((0, 1), ("masks differ", "noise differs"))
    axis.set(xlim=(-0.5, 1.5), ylabel="% of attributes right")
    return _save(figure, path)


def sheet(work: Path, path: Path) -> bool:
    """Frames of the first captions, CFG above S²; False where none are kept."""
    rows = {name: {row["index"]: row for row in read_cell(work, name, "").rows if not row["take"]} for name in SHOWN}
    stills = [{int(file.stem): file for file in (work / "stills" / name).glob("*.png")} for name in SHOWN]
    cells = []
    for index in sorted(
        stills[0].keys() & stills[1].keys() & set.intersection(*(set(found) for found in rows.values()))
    ):
        strips = [
            Strip(label, remark(rows[name][index]["scores"]), _frames(files[index]))
            for (name, label), files in zip(SHOWN.items(), stills, strict=True)
        ]
        cells.append(Cell(rows["main-cfg"][index]["caption"], tuple(strips)))
    if cells:
        write_sheet(cells, path)
    return bool(cells)


def _frames(file: Path) -> Tensor:
    """Square frames that lie side by side in a picture, [F, H, W, 3] in [0, 1]."""
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))) / 255
    return torch.stack(pixels.split(pixels.shape[0], dim=1))


def _label(at: Any) -> str:
    return "–".join(f"{value:g}" for value in at) if isinstance(at, list) else str(at)


def _save(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
    return path

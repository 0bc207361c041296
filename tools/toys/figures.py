"""The toys' figures, drawn from points and from the numbers in results.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools_extra import tools_extra
from torch import Tensor

from .mixtures import Mixture

with tools_extra():
    import matplotlib
    import matplotlib.pyplot as plt

matplotlib.use("Agg")

INK, TRUTH, HOT = "#1f4e79", "#9aa5b1", "#c0392b"
LINES = ("-", "-", "-", (0, (6, 3)), (0, (2, 2)), (0, (1, 4)))  # lines that lie on each other stay seen


def _rows(count: int) -> tuple[Any, Any]:
    columns = 2 if count == 4 else min(3, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes.flat


def densities(points: Mapping[str, Tensor], mixture: Mixture, path: Path) -> None:
    """1-D samples [S, N, 1] of each method, all seeds together, before the true density."""
    figure, axes = _rows(len(points))
    grid = torch.linspace(-9, 9, 400)
    gaussians = torch.exp(-0.5 * ((grid - mixture.centers) / mixture.deviation).square())
    true = gaussians.mean(dim=0) / (mixture.deviation * (2 * torch.pi) ** 0.5)
    for axis, (name, x) in zip(axes, points.items(), strict=False):
        axis.fill_between(grid, true, color=TRUTH, alpha=0.5, label="truth")
        axis.hist(x.flatten().numpy(), bins=120, range=(-9, 9), density=True, histtype="step", color=INK)
        axis.set_title(name, fontsize=10)
        axis.set_yticks([])
    axes[0].legend(fontsize=8, frameon=False)
    _save(figure, path)


def trajectories(paths: Mapping[str, Sequence[Tensor]], mixture: Mixture, path: Path, count: int = 60) -> None:
    """1-D points on their way, [S, N, 1] after each step: the first seed's, evenly from both classes."""
    figure, axes = _rows(len(paths))
    for axis, (name, steps) in zip(axes, paths.items(), strict=False):
        x = torch.stack([step[0, :, 0] for step in steps])
        chosen = torch.linspace(0, x.shape[1] - 1, count).long()
        axis.plot(np.linspace(0, 1, len(steps)), x[:, chosen].numpy(), color=INK, linewidth=0.5, alpha=0.6)
        for center in mixture.centers.flatten().tolist():
            axis.axhline(center, color=HOT, linewidth=0.8, linestyle="--")
        axis.set_ylim(-9, 9)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("share of the denoising", fontsize=8)
    _save(figure, path)


def scatter(points: Mapping[str, Tensor], mixture: Mixture, path: Path) -> None:
    """2-D samples [S, N, 2] of the first seed, with the circles that hold 95 % of each true Gaussian."""
    figure, axes = _rows(len(points))
    for axis, (name, x) in zip(axes, points.items(), strict=False):
        axis.scatter(*x[0].T.numpy(), s=2, color=INK, alpha=0.5, linewidths=0)
        for center in mixture.centers.tolist():
            axis.add_patch(plt.Circle(center, 2.448 * mixture.deviation, fill=False, color=HOT, linewidth=0.8))
        axis.set(xlim=(-9, 9), ylim=(-9, 9), aspect="equal")
        axis.set_title(name, fontsize=10)
    _save(figure, path)


def heat_maps(
    values: Mapping[str, Sequence[Sequence[float]]], lambdas: Sequence[float], omegas: Sequence[float], path: Path
) -> None:
    """For each title, a number for each λ (down) and ω (across)."""
    figure, axes = _rows(len(values))
    for axis, (title, numbers) in zip(axes, values.items(), strict=False):
        numbers = np.array(numbers)
        axis.imshow(numbers, cmap="viridis_r", aspect="auto")
        middle = (numbers.min() + numbers.max()) / 2
        for i, j in np.ndindex(numbers.shape):
            color = "white" if numbers[i, j] > middle else "black"
            axis.text(j, i, f"{numbers[i, j]:.2f}", ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(omegas)), [f"{w:g}" for w in omegas])
        axis.set_yticks(range(len(lambdas)), [f"{scale:g}" for scale in lambdas])
        axis.set(xlabel="ω", ylabel="λ")
        axis.set_title(title, fontsize=10)
    _save(figure, path)


def field_errors(curves: Mapping[str, Mapping[str, Sequence[float]]], sigmas: Sequence[float], path: Path) -> None:
    """For each title, a line for each method: the error of its velocity over σ."""
    figure, axes = _rows(len(curves))
    for axis, (title, lines) in zip(axes, curves.items(), strict=False):
        for (name, errors), dashes in zip(lines.items(), LINES, strict=False):
            axis.plot(sigmas, errors, label=name, linewidth=1.4, linestyle=dashes)
        axis.set_yscale("log")
        axis.set(xlabel="σ", ylabel="distance from the exact field")
        axis.set_title(title, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)

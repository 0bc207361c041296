"""The paper's toys: mixtures of Gaussians, where the exact answer is known (arXiv 2508.12880, App. B.1.3).

    python tools/toy.py --work runs/toys
    python tools/toy.py --show tools/results/toys-2026-11-24-cpu.jsonl

Trains residual networks of 10 blocks with class conditions, 10 seeds side by side, some for long and some for short,
then samples with every method through the package's own masks, guidance and sampler. Prints the tables as Markdown.
The work folder keeps networks, results.jsonl and figures; after an interruption, run the same command to resume. With
`--show`, prints the tables of a results.jsonl.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from json_lines import read_lines, write_lines
from torch import Tensor
from toys import figures
from toys.experiment import (
    NUM_BLOCKS,
    WIDTH,
    Method,
    Networks,
    best_omegas,
    field_errors,
    integrate,
    sample_points,
    train_networks,
)
from toys.mixtures import MIXTURES, Mixture
from toys.network import ResidualNetworks
from toys.point_measures import Interval, Measures, interval, measure, true_outside

from s2video.errors import InputError
from s2video.system.files import atomic_path

NUM_SEEDS, NUM_POINTS, NOISE_SEED = 10, 2000, 1
TRAINING = {"long": 1500, "short": 150}  # steps
LAMBDAS, OMEGAS = (1.0, 2.0, 3.0, 5.0), (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIGMAS_IN_WINDOW = (0.2, 0.35, 0.5, 0.65, 0.8)
SCALE = 3.0  # λ at which methods are held against each other
METHODS = (
    Method("cond only"),
    Method("CFG", SCALE),
    Method("autoguidance", SCALE, autoguidance=True),
    Method("naive S² (N = 8)", SCALE, 0.25, num_draws=8),
    Method("S²", SCALE, 0.25),
    Method("S², first block always dropped", SCALE, 0.25, never_drop=(), band=(0, 0)),
)
TITLES = {"wasserstein": "Wasserstein", "mode_shift": "mode shift", "spread": "spread", "outside": "outside, %"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, default=Path("runs/toys"), help="networks, results and figures")
    add("--seeds", type=int, default=NUM_SEEDS, help="training seeds, at least 2")
    add("--points", type=int, default=NUM_POINTS, help="samples a seed and method")
    add("--long", type=int, default=TRAINING["long"], help="training steps of the long training")
    add("--short", type=int, default=TRAINING["short"], help="and of the short one")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--show", type=Path, metavar="FILE.jsonl", help="print the tables of such results instead")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds: expected at least 2, for an interval, got {args.seeds}")
    return args


def main() -> int:
    args = parse()
    if args.show is not None:
        try:
            print(_tables(_read(args.show)))
        except InputError as error:
            print(f"toy: error: {error}", file=sys.stderr)
            return 2
        return 0
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    settings = {"seeds": args.seeds, "points": args.points, "long": args.long, "short": args.short}
    results = _Results(args.work / "results.jsonl", settings)
    for mixture in MIXTURES.values():
        labels = torch.arange(mixture.num_classes).repeat_interleave(args.points // mixture.num_classes)
        labels = labels.expand(args.seeds, -1)
        results.keep(f"{mixture.name} truth", partial(_exact, mixture, labels))
        for training in TRAINING:
            networks = _networks(args.work, mixture, training, settings)
            for method in (*METHODS, *_grid()):
                key = f"{mixture.name} {training} {method.name} {method.cfg_scale:g} {method.s2_scale:g}"
                results.keep(key, partial(_judge, networks, mixture, method, labels))
            for scale in (1.0, SCALE):
                key = f"{mixture.name} {training} best omega {scale:g}"
                results.keep(key, partial(_best_omegas, networks, mixture, scale))
            _draw(args.work, mixture, training, networks, labels)
    _draw_numbers(args.work, results.values)
    print(_tables(results.values))
    return 0


def _read(path: Path) -> dict[str, Any]:
    """Read a results.jsonl: the settings under "settings", and a record for each key."""
    settings, records = read_lines(path)
    return {"settings": settings, **{record.pop("what"): record for record in records}}


class _Results:
    """Numbers by key, written to disk as soon as they are made."""

    def __init__(self, path: Path, settings: dict[str, int]) -> None:
        self._path = path
        self.values: dict[str, Any] = {"settings": settings}
        if path.exists():
            kept = _read(path)
            if kept["settings"] == settings:
                self.values = kept

    def keep(self, key: str, make: Any) -> None:
        if key not in self.values:
            self.values[key] = make()
            records = ({"what": what, **value} for what, value in self.values.items() if what != "settings")
            write_lines(self._path, self.values["settings"], records)


def _grid() -> list[Method]:
    return [Method("grid", scale, omega) for scale in LAMBDAS for omega in OMEGAS]


def _networks(work: Path, mixture: Mixture, training: str, settings: dict[str, int]) -> Networks:
    steps = settings[training]
    path = work / f"{mixture.name}-{steps}-{settings['seeds']}.pt"
    if not path.exists():
        networks = train_networks(mixture, num_seeds=settings["seeds"], num_steps=steps)
        with atomic_path(path) as temporary:
            torch.save({"full": networks.full.state_dict(), "weak": networks.weak.state_dict()}, temporary)
        return networks
    saved = torch.load(path, weights_only=True)
    loaded = []
    for name, num_blocks in (("full", NUM_BLOCKS), ("weak", NUM_BLOCKS // 3)):
        network = ResidualNetworks(
            settings["seeds"], mixture.dim, mixture.num_classes, num_blocks=num_blocks, width=WIDTH
        )
        network.load_state_dict(saved[name])
        loaded.append(network.eval().requires_grad_(False))
    return Networks(*loaded)


def _judge(networks: Networks, mixture: Mixture, method: Method, labels: Tensor) -> dict[str, Any]:
    points = sample_points(networks, mixture, method, labels, seed=NOISE_SEED)
    errors = field_errors(networks, mixture, method, SIGMAS, seed=NOISE_SEED)
    return {
        "method": asdict(method),
        **{name: values.tolist() for name, values in measure(points, labels, mixture)._asdict().items()},
        "field_errors": errors.mean(dim=0).tolist(),
    }


def _best_omegas(networks: Networks, mixture: Mixture, scale: float) -> dict[str, Any]:
    omegas, left = best_omegas(networks, mixture, scale, SIGMAS_IN_WINDOW, seed=NOISE_SEED)
    return {"omega": omegas.T.tolist(), "left": left.T.tolist()}


def _exact(mixture: Mixture, labels: Tensor) -> dict[str, Any]:
    """Sampling along the exact velocity: what is left is the error of finite steps and finite samples."""
    points = integrate(
        lambda x, sigma, step: mixture.velocity(x, float(sigma), labels), mixture, labels, seed=NOISE_SEED
    )
    return {name: values.tolist() for name, values in measure(points, labels, mixture)._asdict().items()}


def _draw(work: Path, mixture: Mixture, training: str, networks: Networks, labels: Tensor) -> None:
    """Figures of points, unless they are there: as results are, they are kept."""
    kinds = ("densities", "trajectories") if mixture.dim == 1 else ("scatter",)
    files = [work / f"{kind}-{training}.png" for kind in kinds]
    if all(file.exists() for file in files):
        return
    paths: dict[str, list[Tensor]] = {method.name: [] for method in METHODS}
    points = {
        method.name: sample_points(networks, mixture, method, labels, seed=NOISE_SEED, path=paths[method.name])
        for method in METHODS
    }
    if mixture.dim == 1:
        figures.densities(points, mixture, files[0])
        figures.trajectories(paths, mixture, files[1])
    else:
        figures.scatter(points, mixture, files[0])


def _draw_numbers(work: Path, values: dict[str, Any]) -> None:
    pairs = [(mixture, training) for mixture in MIXTURES for training in TRAINING]
    maps, curves = {}, {}
    for mixture, training in pairs:
        title = f"{mixture}, {training} training"
        maps[title] = [
            [_mean(values[f"{mixture} {training} grid {scale:g} {omega:g}"]["wasserstein"]) for omega in OMEGAS]
            for scale in LAMBDAS
        ]
        curves[title] = {
            m.name: values[f"{mixture} {training} {m.name} {m.cfg_scale:g} {m.s2_scale:g}"]["field_errors"]
            for m in METHODS
        }
    figures.heat_maps(maps, LAMBDAS, OMEGAS, work / "wasserstein.png")
    figures.field_errors(curves, SIGMAS, work / "field-errors.png")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _tables(values: dict[str, Any]) -> str:
    """Markdown: the methods of each mixture and training, with their paired difference from CFG."""
    lines = []
    for mixture in MIXTURES.values():
        for training in TRAINING:
            lines += ["", f"{mixture.name}, {training} training ({values['settings'][training]} steps):", ""]
            lines += [f"| method | {' | '.join(TITLES.values())} | Wasserstein − CFG's |", "|---|---|---|---|---|---|"]
            cfg = torch.tensor(values[f"{mixture.name} {training} CFG {SCALE:g} 0"]["wasserstein"])
            for method in METHODS:
                entry = values[f"{mixture.name} {training} {method.name} {method.cfg_scale:g} {method.s2_scale:g}"]
                difference = interval(torch.tensor(entry["wasserstein"]) - cfg)
                lines.append(_row(method.name, entry, "" if method.name == "CFG" else _signed(difference)))
            lines.append(_row("exact velocity", values[f"{mixture.name} truth"], ""))
        lines += ["", f"Outside, of a true Gaussian alone: {100 * true_outside(mixture):.2f} %."]
    return "\n".join(lines + _omega_table(values))


def _omega_table(values: dict[str, Any]) -> list[str]:
    """Markdown: the ω at which the guided field is nearest to the exact one, and how much of its error that leaves."""
    titles = [f"σ = {sigma:g}" for sigma in SIGMAS_IN_WINDOW]
    lines = ["", "ω at which the field is nearest to the exact one, and what that leaves of its error at ω = 0, %:", ""]
    lines += [f"| mixture, training | λ | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    for mixture in MIXTURES:
        for training in TRAINING:
            for scale in (1.0, SCALE):
                entry = values[f"{mixture} {training} best omega {scale:g}"]
                cells = [
                    f"{_signed(interval(torch.tensor(omega)), 2)}; {100 * _mean(left):.1f}"
                    for omega, left in zip(entry["omega"], entry["left"], strict=True)
                ]
                lines.append(f"| {mixture}, {training} | {scale:g} | {' | '.join(cells)} |")
    return lines


def _row(name: str, entry: dict[str, Any], difference: str) -> str:
    cells = []
    for measured in Measures._fields:
        mean, half = interval(torch.tensor(entry[measured]))
        factor, digits = (100, 1) if measured == "outside" else (1, 3)
        cells.append(f"{factor * mean:.{digits}f} ± {factor * half:.{digits}f}")
    return f"| {name} | {' | '.join(cells)} | {difference} |"


def _signed(difference: Interval, digits: int = 3) -> str:
    return f"{difference.mean:+.{digits}f} ± {difference.half:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())

"""Generates clips for captions and reports which attributes are right, for CFG and S²-Guidance.

    python tools/evaluate.py --config configs/shapes.yaml --captions 64 --output runs/eval.json --sheet runs/eval.png

First λ (`cfg_scale`) is chosen for CFG on a grid set of captions; then CFG and S² run at that λ on the report set:
other captions, the same seeds for both. Their combinations were kept out of training, unless `--trained` asks for
others. `shapes/detector.py` reads the clips; a clip of n things has 4n + 1 attributes, the background being one. Exit
codes: 0 done, 1 the run failed or (with --check) a bar is not met, 2 the input cannot be used.
"""

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from shapes.contact_sheet import Cell, Strip, write_sheet
from shapes.detector import Reading, read_scene, score
from shapes.report import METHOD_NAMES, Scores, check_bars, choose_scale, column, describe, summarize
from shapes.world import ATTRIBUTES, Scene, caption, sample_scene
from torch import Tensor

from s2video.config.run import read_config
from s2video.engine.engine import Engine
from s2video.errors import InputError, S2VideoError
from s2video.records.sidecar import versions
from s2video.system.files import write_json
from s2video.system.progress import Progress

SHEET_CLIPS, SHEET_FRAMES = 12, 4
Key = TypeVar("Key")

SEEDS_PER_RUN, GRID_SEEDS, REPORT_SEEDS, SEEDS_PER_GROUP = 1_000_000, 0, 500_000, 100_000


class Sampler(Protocol):
    """The part of `s2video.engine.engine.Engine` that is used here."""

    def with_guidance(self, **changes: Any) -> "Sampler": ...
    def sample(self, prompts: Sequence[str], seeds: Sequence[int], *, mask_seed: int | None = None) -> Tensor: ...
    def decode(self, latents: Tensor) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Clip:
    """One clip to generate, and what it should show."""

    scene: Scene
    seed: int

    @property
    def caption(self) -> str:
        return caption(self.scene)


@dataclass(frozen=True)
class Result:
    """One clip as generated: what the detector read, which attributes are right, and a few frames to look at."""

    clip: Clip
    reading: Reading
    scores: Scores
    frames: Tensor  # [SHEET_FRAMES, H, W, 3] in [0, 1]

    def as_json(self) -> dict[str, Any]:
        objects = [
            {key: value for key, value in asdict(found).items() if key != "track"} for found in self.reading.objects
        ]
        read = {"background": self.reading.background, "objects": objects, "num_extra": self.reading.num_extra}
        return {"caption": self.clip.caption, "seed": self.clip.seed, "scores": dict(self.scores), "read": read}


def draw_clips(
    name: str,
    *,
    count: int,
    num_things: int,
    seed: int,
    first_seed: int,
    taken: frozenset[str] = frozenset(),
    held_out: bool = True,
) -> list[Clip]:
    """`count` captions, none of them in `taken`, and as long as there are new ones none of them twice.

    `held_out` is that of `sample_scene`: whether their combinations were kept out of training.
    """
    rng = random.Random(f"{seed}-evaluate-{name}-{num_things}")
    clips: list[Clip] = []
    seen = set(taken)
    while len(clips) < count:
        for _ in range(1000):
            scene = sample_scene(rng, num_things=num_things, held_out=held_out)
            if caption(scene) not in seen:
                break
        else:
            if seen == taken:
                raise InputError(f"--grid-captions leaves no other captions of {num_things} thing(s): take fewer")
            seen = set(taken)  # all are used up: once more from the start, with other seeds
            continue
        seen.add(caption(scene))
        clips.append(Clip(scene, first_seed + len(clips)))
    return clips


def generate(sampler: Sampler, clips: Sequence[Clip], *, batch: int, on_batch: Callable[[], None]) -> list[Result]:
    """Sample, decode, read and score all clips. A batch shares its masks, drawn from the seed of its first clip."""
    results = []
    for start in range(0, len(clips), batch):
        group = clips[start : start + batch]
        latents = sampler.sample([c.caption for c in group], [c.seed for c in group], mask_seed=group[0].seed)
        for i, clip in enumerate(group):
            frames = torch.cat(list(sampler.decode(latents[i : i + 1]))).cpu()
            reading = read_scene(frames.permute(3, 0, 1, 2) * 2 - 1, len(clip.scene.things))
            kept = frames[torch.linspace(0, len(frames) - 1, SHEET_FRAMES).round().long()]
            results.append(Result(clip, reading, score(clip.scene, reading), kept))
        on_batch()
    return results


def sheet_cells(report: Mapping[tuple[str, int], Sequence[Result]]) -> list[Cell]:
    """The first captions of the report set, as many of each number of things: no choice by looks."""
    groups = list(dict.fromkeys(things for _, things in report))
    methods = [method for method in METHOD_NAMES if any(m == method for m, _ in report)]
    cells = []
    for num_things in groups:
        columns = [report[method, num_things][: SHEET_CLIPS // len(groups)] for method in methods]
        for results in zip(*columns, strict=True):
            strips = [
                Strip(METHOD_NAMES[method], remark(result.scores), result.frames)
                for method, result in zip(methods, results, strict=True)
            ]
            cells.append(Cell(results[0].clip.caption, tuple(strips)))
    return cells


def remark(scores: Scores) -> str:
    """Such as "wrong: first color, shape; second all; background"; nothing if all is right."""
    parts = []
    for i, ordinal in enumerate(("first", "second")):
        wrong = [name for name in ATTRIBUTES if not scores.get(f"objects.{i}.{name}", True)]
        if wrong:
            parts.append(f"{ordinal} " + ("all" if len(wrong) == len(ATTRIBUTES) else ", ".join(wrong)))
    if not scores["background"]:
        parts.append("background")
    return "wrong: " + "; ".join(parts) if parts else ""


def load_engine(config_path: Path, overrides: Sequence[str]) -> tuple[Sampler, dict[str, Any]]:
    """The engine of a config file, and what decides its results: config, weight digests, versions."""
    config = read_config(config_path, overrides)
    engine = Engine(config, progress="none")
    facts = {
        "config": config.model_dump(mode="json"),
        "weights": engine.checkpoint.weight_digests(),
        "versions": versions() | {"scipy": metadata.version("scipy")},
    }
    return engine, facts


def run(sampler: Sampler, args: argparse.Namespace) -> dict[str, Any]:
    """Grid, then report; returns the figures, with the results themselves under "grid" and "report"."""
    grid_clips, report_clips = draw_sets(args)
    scales = list(dict.fromkeys(args.cfg_scales))
    grid_scales = scales if len(scales) > 1 else []
    batches = [math.ceil(count / args.batch) for count in (args.grid_captions, args.captions)]
    total = len(grid_clips) * (len(grid_scales) * batches[0] + len(args.methods) * batches[1])
    done = 0
    with Progress("evaluating, in batches") as progress:

        def on_batch() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        def measure(clips: Sequence[Clip], **guidance: float) -> list[Result]:
            return generate(sampler.with_guidance(**guidance), clips, batch=args.batch, on_batch=on_batch)

        grid = {
            scale: {n: measure(clips, cfg_scale=scale, s2_scale=0.0) for n, clips in grid_clips.items()}
            for scale in grid_scales
        }
        best = choose_scale({scale: _scores(groups) for scale, groups in grid.items()}) if grid else scales[0]
        changes = {"cfg": {"s2_scale": 0.0}, "s2": {} if args.s2_scale is None else {"s2_scale": args.s2_scale}}
        report = {
            (method, n): measure(clips, cfg_scale=best, **changes[method])
            for n, clips in report_clips.items()
            for method in args.methods
        }
    return {"cfg_scale": best, "grid": grid, "report": report}


def draw_sets(args: argparse.Namespace) -> tuple[dict[int, list[Clip]], dict[int, list[Clip]]]:
    """Return the clips of the grid and of the report by number of things. Both have no caption in common."""
    grid: dict[int, list[Clip]] = {}
    report: dict[int, list[Clip]] = {}
    for n in dict.fromkeys(args.num_things):
        common = {"num_things": n, "seed": args.seed, "held_out": not args.trained}
        first = SEEDS_PER_RUN * args.seed + SEEDS_PER_GROUP * n
        grid[n] = draw_clips("grid", count=args.grid_captions, first_seed=first + GRID_SEEDS, **common)
        taken = frozenset(clip.caption for clip in grid[n])
        report[n] = draw_clips("report", count=args.captions, first_seed=first + REPORT_SEEDS, taken=taken, **common)
    return grid, report


def _scores(groups: Mapping[Key, Sequence[Result]]) -> dict[Key, list[Scores]]:
    return {key: [result.scores for result in results] for key, results in groups.items()}


def as_json(outcome: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What `run` returned, with the summary, for a file."""
    grid, report = outcome["grid"], outcome["report"]
    scores = _scores(report)
    return {
        "cfg_scale": outcome["cfg_scale"],
        "bars": check_bars(scores),
        "summary": summarize(scores, seed),
        "grid": [
            {
                "cfg_scale": scale,
                "num_things": n,
                "all": float(column([result.scores for result in results], "all").mean()),
                "clips": [result.as_json() for result in results],
            }
            for scale, groups in grid.items()
            for n, results in groups.items()
        ],
        "report": [
            {"method": method, "num_things": n, "clips": [result.as_json() for result in results]}
            for (method, n), results in report.items()
        ],
    }


def whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def positive_number(text: str) -> int:
    if (value := whole_number(text)) == 0:
        raise ValueError
    return value


def guidance_scale(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which attributes of captions come out right?")
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of the model and its sampling")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the config, such as model.path=F")
    add("--captions", type=positive_number, default=64, help="report set: captions for each number of things")
    add("--grid-captions", type=positive_number, default=16, help="grid set, from which λ is chosen: likewise")
    add(
        "--cfg-scales",
        type=guidance_scale,
        nargs="+",
        default=[1.0, 2.0, 4.0, 6.0],
        help="λ to choose from; one: no grid",
    )
    add("--s2-scale", type=guidance_scale, help="ω of S²; default: the config's")
    add("--trained", action="store_true", help="captions of combinations that were in training, not of held-out ones")
    add("--methods", nargs="+", choices=list(METHOD_NAMES), default=list(METHOD_NAMES))
    add("--num-things", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    add("--batch", type=positive_number, default=16, help="clips sampled at once; clips of a batch share their masks")
    add("--seed", type=whole_number, default=0, help="of captions, noise and masks")
    add("--output", type=Path, required=True, help="JSON with every figure and every clip's reading")
    add("--sheet", type=Path, help=f"PNG of the first {SHEET_CLIPS} captions of the report set")
    add("--check", action="store_true", help="exit with 1 if a bar is not met")
    args = parser.parse_args(argv)
    args.methods = list(dict.fromkeys(args.methods))
    return args


def require_writable(path: Path) -> None:
    """Raise InputError now rather than after an hour if a file cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder of {path}: {error.strerror}; choose another path") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: it is a folder, or its folder is read-only; choose another path")


def main(
    argv: Sequence[str] | None = None,
    make_sampler: Callable[[Path, Sequence[str]], tuple[Sampler, dict[str, Any]]] = load_engine,
) -> int:
    args = parse(argv)
    try:
        for path in filter(None, (args.output, args.sheet)):
            require_writable(path)
        start = time.monotonic()
        sampler, facts = make_sampler(args.config, args.set)
        outcome = run(sampler, args)
        figures = as_json(outcome, args.seed)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        write_json(
            args.output, {"settings": settings, **facts, "seconds": round(time.monotonic() - start, 1), **figures}
        )
        if args.sheet is not None:
            write_sheet(sheet_cells(outcome["report"]), args.sheet)
    except S2VideoError as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(describe(figures, f"{args.captions} {'trained' if args.trained else 'held-out'} captions"))
    return 1 if args.check and not all(bar["met"] for bar in figures["bars"]) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures how far `guidance.reuse`, or a setting of `model`, moves final latents, next to another seed of the masks.

    python tools/reuse_error.py --json runs/reuse.jsonl                              # takes many minutes
    python tools/reuse_error.py --scales 5 --reuse light "{preset: light, start: 0.4}"
    python tools/reuse_error.py --scales 2 --reuse --model "{quantization: int8}" "{compile: blocks}"

For the embedded model. Every way makes the same clips of held-out captions from the same noise. Its error is |latents −
latents of exact S²| / |latents of exact S²| for each clip. Passes are those computed in a run, in passes through all
blocks, over those of plain CFG; embeddings and projections are not counted. The yardstick is exact S² with other seeds
of the masks: a smaller error cannot be told from the luck of the masks. Exit codes: 0 done, 2 the input cannot be used.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from evaluate import Clip, draw_clips, positive_number, whole_number
from json_lines import lines_path, write_lines
from torch import Tensor

from s2video.config.run import RunConfig
from s2video.config.yaml_reader import parse_yaml
from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.guidance.reuse import PRESETS
from s2video.models.recipes import load_model_config
from s2video.planning.work import SubWork
from s2video.records.sidecar import versions
from s2video.system.progress import Progress

MASK_SEED = 1000


class Way(NamedTuple):
    """One way to make the clips: changes of the guidance, the seed of the masks, and changes of `model` as YAML."""

    name: str
    guidance: Mapping[str, Any]
    mask_seed: int = MASK_SEED
    model: str = "{}"


def ways(num_mask_seeds: int, reuse: Sequence[str], models: Sequence[str] = ()) -> Iterator[Way]:
    """Yield exact S² first, then what is compared with it."""
    yield Way("exact", {})
    for seed in range(1, num_mask_seeds + 1):
        yield Way(f"exact, mask seed {seed}", {}, MASK_SEED + seed)
    yield Way("no S² (ω = 0)", {"s2_scale": 0.0})
    for text in reuse:
        yield Way(text, {"reuse": parse_yaml(text, "--reuse")})
    for text in models:
        yield Way(text, {}, model=text)


def passes_over_cfg(engine: Engine, mask_seed: int) -> float:
    """Return the work of a run in passes through all blocks, over cond and uncond in every step."""
    masks = engine.mask_schedule([0], mask_seed)
    total = 0.0
    for step, passes in enumerate(engine.passes(masks)):
        total += (passes.cond == "computed") + (passes.uncond == "computed")
        total += SubWork.of_masks(masks.step(step), engine.num_blocks).passes
    return total / (2 * masks.num_steps)


def errors(latents: Tensor, exact: Tensor) -> list[float]:
    """Return the relative distance of each clip: [B, C, T, H, W] twice -> [B]."""
    distance = (latents - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    return [float(value) for value in distance]


def sample(engine: Engine, clips: Sequence[Clip], batch: int, mask_seed: int) -> list[Tensor]:
    """Return the latents of all clips, a tensor for each batch. A batch shares its masks."""
    groups = [clips[start : start + batch] for start in range(0, len(clips), batch)]
    return [
        engine.sample([c.caption for c in group], [c.seed for c in group], mask_seed=mask_seed + 100 * number)
        for number, group in enumerate(groups)
    ]


def measure(config: RunConfig, args: argparse.Namespace, clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """Return a record for each λ and each way."""
    records: list[dict[str, Any]] = []
    engines: dict[str, Engine] = {}
    compared = list(ways(args.mask_seeds, args.reuse, args.model))
    with Progress("runs", "auto") as progress:
        for scale in args.scales:
            exact: list[Tensor] = []
            for way in compared:
                if way.model not in engines:
                    model = config.patched({"model": parse_yaml(way.model, "--model")}, "--model")
                    engines[way.model] = Engine(model, progress="none")
                changed = engines[way.model].with_guidance(cfg_scale=scale, **way.guidance)
                latents = sample(changed, clips, args.batch, way.mask_seed)
                exact = exact or latents
                found = [error for a, b in zip(latents, exact, strict=True) for error in errors(a, b)]
                record = {"cfg_scale": scale, "way": way.name, "passes": passes_over_cfg(changed, way.mask_seed)}
                records.append(record | {"errors": found})
                progress(len(records), len(compared) * len(args.scales))
    return records


def describe(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table, in Markdown; the other mask seeds share a row."""
    lines = ["| λ | way | passes / CFG | error: mean | median | largest |", "|---|---|---|---|---|---|"]
    for scale in dict.fromkeys(record["cfg_scale"] for record in records):
        rows = [record for record in records if record["cfg_scale"] == scale]
        for row in rows:
            if row["way"].startswith("exact, "):
                continue
            lines.append(f"| {scale:g} | {row['way']} | {row['passes']:.3f} | {_figures([row])} |")
            if row["way"] == "exact":
                others = [other for other in rows if other["way"].startswith("exact, ")]
                passes = fmean(other["passes"] for other in others) if others else math.nan
                lines.append(f"| {scale:g} | {len(others)} other mask seeds | {passes:.3f} | {_figures(others)} |")
    return "\n".join(lines)


def _figures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean, median and largest error; of several rows the range of each."""
    cells = []
    for figure in (fmean, median, max):
        values = sorted(figure(row["errors"]) for row in rows)
        cells.append(f"{values[0]:.3f}" + (f" to {values[-1]:.3f}" if len(values) > 1 else "") if values else "–")
    return " | ".join(cells)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--clips", type=positive_number, default=16, help="held-out captions, half of them of two things")
    add("--scales", type=float, nargs="+", default=[2.0, 5.0], help="values of λ")
    add("--steps", type=positive_number, default=30, help="denoising steps")
    add("--mask-seeds", type=whole_number, default=5, help="other seeds of the masks")
    add("--reuse", nargs="*", default=[name for name in PRESETS if name != "exact"], help="presets, or fields as YAML")
    add(
        "--model",
        nargs="*",
        default=[],
        metavar="YAML",
        help="settings of model to compare, such as {quantization: fp8}",
    )
    add("--batch", type=positive_number, default=8, help="clips that are made together; they share masks")
    add("--json", type=lines_path, metavar="FILE.jsonl", help="also write every error there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        config = load_model_config("shapes-wan", {"sampling.num_inference_steps": args.steps}).config
        counts = {1: (args.clips + 1) // 2, 2: args.clips // 2}
        clips = [
            clip
            for things, count in counts.items()
            for clip in draw_clips("reuse", count=count, num_things=things, seed=0, first_seed=200_000 * things)
        ]
        records = measure(config, args, clips)
    except InputError as error:
        print(f"reuse_error: error: {error}", file=sys.stderr)
        return 2
    if args.json is not None:
        header = {"config": config.model_dump(mode="json"), "captions": [c.caption for c in clips]}
        write_lines(args.json, header | {"versions": versions()}, records)
    print(describe(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())

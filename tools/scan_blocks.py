"""Leaves out one block at a time and measures what becomes of the prediction, and of the result.

    python tools/scan_blocks.py --config configs/shapes.yaml --captions 8 --output runs/blocks.jsonl
    python tools/scan_blocks.py --config configs/wan2.1-t2v-1.3b-480p.yaml --prompts prompts.txt --output runs/wan.jsonl

For any checkpoint that the engine loads, under torchrun too. For models of the shapes' world, `--captions` takes
held-out captions and also counts the attributes right. It suggests `guidance.never_drop` by a stated rule: those blocks
whose effect on the prediction, averaged, is more than `--factor` times the median block's.

Prediction: |sub − cond| / |cond| where sub leaves out that one block, in a few steps along the trajectory of plain CFG.
Result: |latents − latents of CFG| / |latents of CFG| where cond leaves it out in every step (uncond stays whole).
Exit codes: 0 done, 1 the run failed, 2 the input cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from evaluate import Clip, draw_clips, positive_number, whole_number
from json_lines import lines_path, write_lines
from shapes.detector import read_scene, score
from torch import Tensor

from s2video.config.run import read_config
from s2video.engine.engine import Around, Engine
from s2video.errors import InputError, S2VideoError
from s2video.guidance.equations import Predictions
from s2video.parallel.mesh import init_mesh
from s2video.records.sidecar import versions
from s2video.sampling.denoiser import Denoiser
from s2video.system.progress import Progress

FACTOR = 2.0


def effects_on_prediction(
    engine: Engine, prompt: str, seed: int, *, steps: Sequence[int], together: int
) -> tuple[Tensor, Tensor]:
    """|sub − cond| / |cond| for each of `steps` and each block, [steps, blocks], and the latents of the run.

    Args:
        engine: of plain CFG, whose trajectory is followed.
        together: blocks that are left out in one pass through the model; each is a branch, which takes memory.
    """
    rows: list[list[float]] = []

    def measure(denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        if step in steps:
            errors: list[float] = []
            for first in range(0, engine.num_blocks, together):
                blocks = range(first, min(first + together, engine.num_blocks))
                found = denoiser.predictions(latents, timestep, [(block,) for block in blocks])
                errors += [relative_distance(sub, found.cond) for sub in found.subs]
            rows.append(errors)
        return denoiser(latents, timestep, step)

    latents = _sample(engine, prompt, seed, measure)
    return torch.tensor(rows), latents


def without_block(engine: Engine, prompt: str, seed: int, block: int) -> Tensor:
    """The latents of CFG where cond leaves out that block in every step."""

    def denoise(denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        predictions = denoiser.predictions(latents, timestep, [(block,)])
        return denoiser.guide(Predictions(predictions.subs[0], predictions.uncond), timestep, step)

    return _sample(engine, prompt, seed, denoise)


def _sample(engine: Engine, prompt: str, seed: int, around: Around) -> Tensor:
    return engine.sample([prompt], [seed], negative_prompt=engine.config.negative_prompt, around=around)


def relative_distance(value: Tensor, base: Tensor) -> float:
    return float((value.float() - base.float()).norm() / base.float().norm())


def critical_blocks(effects: Sequence[float], factor: float) -> list[int]:
    """Blocks whose effect is more than `factor` times the median of all."""
    return [i for i, effect in enumerate(effects) if effect > factor * median(effects)]


def spread_steps(num_steps: int, count: int) -> list[int]:
    """`count` steps, each in the middle of an equal part of the run; all where there are no more."""
    return sorted({int((i + 0.5) * num_steps / count) for i in range(count)})


@dataclass
class Found:
    """What was measured so far, a value for each prompt; by block, what leaving it out changed.

    Attributes:
        effects: on the prediction, each [steps, blocks].
        distances: of the latents.
        rights: share of attributes right; none without clips.
        whole_rights: the same with every block.
    """

    effects: list[Tensor]
    distances: dict[int, list[float]]
    rights: dict[int, list[float]]
    whole_rights: list[float]


def scan(engine: Engine, args: argparse.Namespace, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Any]:
    """Return every block's figures, as JSON. Called on all ranks together."""
    engine = engine.with_guidance(method="s2", s2_scale=0.0)
    steps = spread_steps(engine.config.sampling.num_inference_steps, args.steps)
    found = measure_blocks(engine, args, clips, prompts, steps)
    by_step = torch.stack(found.effects).mean(dim=0)  # [steps, blocks]
    means = by_step.mean(dim=0).tolist()
    return {
        "steps": steps,
        "blocks": [
            {
                "block": block,
                "prediction": means[block],
                "prediction_by_step": by_step[:, block].tolist(),
                "result": _mean(found.distances[block]),
                "attributes_right": _mean(found.rights[block]),
            }
            for block in range(engine.num_blocks)
        ],
        "attributes_right": _mean(found.whole_rights),
        "rule": f"effect on the prediction above {args.factor:g} times the median of all blocks",
        "never_drop": critical_blocks(means, args.factor),
    }


def measure_blocks(
    engine: Engine, args: argparse.Namespace, clips: Sequence[Clip], prompts: Sequence[str], steps: Sequence[int]
) -> Found:
    """Sample every prompt with all blocks and, unless `--no-results`, once without each block."""
    blocks = range(engine.num_blocks)
    left_out = () if args.no_results else blocks
    found = Found([], {block: [] for block in blocks}, {block: [] for block in blocks}, [])
    seeds = [clip.seed for clip in clips] or list(range(len(prompts)))
    done, total = 0, len(prompts) * (1 + len(left_out))
    with Progress("videos", "auto" if engine.mesh.is_main else "none") as progress:
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            effects, latents = effects_on_prediction(engine, prompt, seed, steps=steps, together=args.together)
            found.effects.append(effects)
            if clips:
                found.whole_rights.append(share_right(engine, clips[number], latents))
            progress(done := done + 1, total)
            for block in left_out:
                changed = without_block(engine, prompt, seed, block)
                found.distances[block].append(relative_distance(changed, latents))
                if clips:
                    found.rights[block].append(share_right(engine, clips[number], changed))
                progress(done := done + 1, total)
    return found


def share_right(engine: Engine, clip: Clip, latents: Tensor) -> float:
    """Share of the clip's attributes that the decoded video shows; on the main rank only, elsewhere 0."""
    frames = list(engine.decode(latents))  # by all ranks, for the main one
    if not engine.mesh.is_main:
        return 0.0
    video = torch.cat(frames).permute(3, 0, 1, 2) * 2 - 1
    return float(score(clip.scene, read_scene(video, len(clip.scene.things)))["all"])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def describe(figures: dict[str, Any]) -> str:
    """The table, in Markdown, and what it suggests."""
    lines = [
        "| block left out | effect on the prediction | on the latents | attributes right, % |",
        "|---|---|---|---|",
    ]
    for row in figures["blocks"]:
        marks = "**" if row["block"] in figures["never_drop"] else ""
        result = "–" if row["result"] is None else f"{row['result']:.3f}"
        lines.append(f"| {marks}{row['block']}{marks} | {row['prediction']:.4f} | {result} | {_percent(row)} |")
    lines.append(f"| none | 0 | 0 | {_percent(figures)} |")
    return "\n".join([*lines, "", f"guidance.never_drop: {figures['never_drop']}  ({figures['rule']})"])


def _percent(row: dict[str, Any]) -> str:
    return "–" if row["attributes_right"] is None else f"{100 * row['attributes_right']:.1f}"


def choose_prompts(args: argparse.Namespace, default: str | None) -> tuple[list[Clip], list[str]]:
    """The clips of held-out captions, or none, and the prompts.

    Raises:
        InputError: there are no prompts.
    """
    if args.captions:
        each = {1: (args.captions + 1) // 2, 2: args.captions // 2}
        clips = [
            clip
            for things, count in each.items()
            for clip in draw_clips("scan", count=count, num_things=things, seed=0, first_seed=100_000 * things)
        ]
        return clips, [clip.caption for clip in clips]
    if args.prompts is not None:
        try:
            prompts = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise InputError(f"--prompts {args.prompts}: {error.strerror}") from None
    else:
        prompts = [default] if default else []
    if not prompts:
        raise InputError("expected prompts, got none: give --captions, --prompts, or a config with a prompt")
    return [], prompts


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of the model and its sampling")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the config, such as model.path=F")
    add(
        "--captions",
        type=whole_number,
        default=0,
        help="so many held-out captions of shapes, half of them of two things",
    )
    add("--prompts", type=Path, help="text file, a prompt a line; default: the config's prompt")
    add(
        "--steps", type=positive_number, default=5, help="steps, spread over the run, in which predictions are compared"
    )
    add("--together", type=positive_number, default=4, help="blocks left out in one pass, each of which takes memory")
    add("--factor", type=float, default=FACTOR, help="of the rule, see above")
    add("--no-results", action="store_true", help="predictions only: one video a prompt, in place of one a block")
    add("--output", type=lines_path, required=True, metavar="FILE.jsonl", help="a line for each block")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        config = read_config(args.config, args.set)
        clips, prompts = choose_prompts(args, config.prompt)
        with init_mesh(config.parallel, config.model.device) as mesh:
            engine = Engine(config, mesh, progress="none")
            figures = scan(engine, args, clips, prompts)
            if mesh.is_main:
                facts = {"weights": engine.checkpoint.weight_digests(), "versions": versions(), "prompts": prompts}
                whole = {name: value for name, value in figures.items() if name != "blocks"}
                header = {"config": config.model_dump(mode="json"), **facts, **whole}
                write_lines(args.output, header, figures["blocks"])
                print(describe(figures))
    except S2VideoError as error:
        print(f"scan_blocks: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

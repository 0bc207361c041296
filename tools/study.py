"""Make and measure the clips of the study of docs/evidence/video.md: CFG, S² and others on held-out captions.

    python tools/study.py --config configs/shapes.yaml --work runs/study
    python tools/study.py --config configs/shapes.yaml --work runs/study --parts main grid

After an interruption, run the same command to resume. `tools/study_report.py` makes tables and pictures of what there
is so far. Exit codes: 0 done, 1 the run failed, 2 the input cannot be used.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from evaluate import Clip, load_engine, positive_number
from PIL import Image
from shapes.features import WEIGHTS, load_features
from shapes.world import render
from studies.cells import (
    NUM_SHOWN,
    Cell,
    Counts,
    Point,
    Take,
    evaluations,
    make_plan,
    mask_seed_of,
    seed_of,
)
from studies.clip_file import Records
from studies.clip_measures import measure_clip
from torch import Tensor

from s2video.config.run import RunConfig
from s2video.errors import InputError, S2VideoError
from s2video.system.files import atomic_path, sha256, write_json
from s2video.system.progress import Progress

PARTS = ("main", "naive", "grid", "drop", "first", "window", "masks", "seeds")
NUM_STILLS = 4  # frames kept of a clip
_UNSEEN = ("output", "prompt", "image", "last_image", "control")  # of a config: decides no pixel of the study


class Sampler(Protocol):
    """The part of `s2video.engine.engine.Engine` that is used here."""

    config: RunConfig

    @property
    def num_blocks(self) -> int: ...
    def with_config(self, config: RunConfig) -> "Sampler": ...
    def sample(self, prompts: Sequence[str], seeds: Sequence[int], *, mask_seed: int | None = None) -> Tensor: ...
    def decode(self, latents: Tensor) -> Iterator[Tensor]: ...


class Study:
    """The cells of a work folder.

    Args:
        facts: what decides results and is no setting of a cell: config, weights, versions.
        batch: clips sampled at once where no masks are drawn.
        mask_batch: where there are; they share their masks, those of the first.
    """

    def __init__(
        self, sampler: Sampler, work: Path, counts: Counts, facts: dict[str, Any], *, batch: int, mask_batch: int
    ) -> None:
        self._sampler = sampler
        self._work = work
        self._counts = counts
        self._facts = {**facts, "features": sha256(WEIGHTS), "counts": vars(counts)}
        self._network = load_features()
        self._batch = batch
        self._mask_batch = mask_batch

    def write_plan(self, plan: dict[str, tuple[Point, ...]]) -> None:
        """What the report reads: which cells belong to which part."""
        parts = {
            part: [{"at": point.at, "title": point.title, "cell": point.cell.name} for point in points]
            for part, points in plan.items()
        }
        write_json(self._work / "plan.json", {**self._facts, "parts": parts})

    def make(self, cell: Cell, on_clip: Callable[[], None]) -> None:
        """Make and measure those clips of the cell that are not in its file yet."""
        config = cell.config(self._sampler.config)
        batch = 1 if cell.renders else self._mask_batch if config.guidance.uses_s2 else self._batch
        records = Records(self._work / f"{cell.name}.jsonl", {"cell": cell.as_json(), "batch": batch, **self._facts})
        clips = self._counts.clips(cell.clips)
        done = {(row["index"], row["take"]) for row in records.rows}
        sampler = self._sampler.with_config(config)
        for number, take in enumerate(cell.takes):
            for start in range(0, len(clips), batch):
                group = range(start, min(start + batch, len(clips)))  # always the same, so that the rounding is, too
                missing = [index for index in group if (index, number) not in done]
                if missing:
                    made = self._frames(cell, sampler, [clips[index] for index in group], take)
                    for index in missing:
                        row = self._row(cell, config, clips[index], take, clips[start], made[index - start])
                        if number == 0 and cell.clips == "main":
                            self._keep_stills(cell, index, made[index - start])
                        records.add([{"index": index, "take": number, **row}])
                for _ in group:
                    on_clip()

    def _frames(self, cell: Cell, sampler: Sampler, clips: Sequence[Clip], take: Take) -> list[Tensor]:
        """Each clip's, [T, H, W, 3] in [0, 1]."""
        if cell.renders:
            return [video.permute(1, 2, 3, 0) / 2 + 0.5 for video in render([clip.scene for clip in clips])[0]]
        latents = sampler.sample(
            [clip.caption for clip in clips],
            [seed_of(clip, take) for clip in clips],
            mask_seed=mask_seed_of(clips[0], take),
        )
        return [torch.cat(list(sampler.decode(one))).cpu() for one in latents.split(1)]

    def _row(
        self, cell: Cell, config: RunConfig, clip: Clip, take: Take, first: Clip, frames: Tensor
    ) -> dict[str, Any]:
        features = self._network(frames.permute(3, 0, 1, 2)[None] * 2 - 1)[0]
        row: dict[str, Any] = {"caption": clip.caption, "num_things": len(clip.scene.things)}
        if not cell.renders:
            mask_seed = mask_seed_of(first, take)
            passes = evaluations(
                config.guidance,
                num_blocks=self._sampler.num_blocks,
                num_steps=config.sampling.num_inference_steps,
                mask_seed=mask_seed if config.guidance.uses_s2 else 0,
            )
            row |= {"seed": seed_of(clip, take), "mask_seed": mask_seed, "evaluations": round(passes, 4)}
        return row | measure_clip(clip.scene, frames) | {"features": [round(x, 4) for x in features.tolist()]}

    def _keep_stills(self, cell: Cell, index: int, frames: Tensor) -> None:
        """The first captions of each number of things: frames side by side, in a PNG."""
        if index % self._counts.captions >= NUM_SHOWN // 2:
            return
        chosen = frames[torch.linspace(0, len(frames) - 1, NUM_STILLS).round().long()]
        pixels = (torch.cat(list(chosen), dim=1).clamp(0, 1) * 255).round().byte()
        with atomic_path(self._work / "stills" / cell.name / f"{index:03d}.png") as temporary:
            Image.fromarray(pixels.numpy()).save(temporary, format="PNG")


def run(sampler: Sampler, facts: dict[str, Any], args: argparse.Namespace) -> None:
    counts = Counts(args.captions, min(args.side_captions, args.captions), args.reference, args.seeds)
    # a third of the way in, where those who publish settings for SLG have their layers
    layers = args.slg_layers or [max(1, round(0.3 * sampler.num_blocks))]
    plan = make_plan(sampler.config, sampler.num_blocks, seeds=args.seeds, slg_layers=layers)
    config = {name: value for name, value in facts["config"].items() if name not in _UNSEEN}
    study = Study(sampler, args.work, counts, {**facts, "config": config}, batch=args.batch, mask_batch=args.mask_batch)
    cells = {point.cell.name: point.cell for part in ("truth", *args.parts) for point in plan[part]}
    for cell in cells.values():
        sampler.with_config(cell.config(sampler.config))  # reports a wrong setting now, not after hours
    study.write_plan(plan)
    total = sum(len(counts.clips(cell.clips)) * len(cell.takes) for cell in cells.values())
    with Progress("clips") as progress:
        made = 0

        def on_clip() -> None:
            nonlocal made
            made += 1
            progress(made, total)

        for cell in cells.values():
            study.make(cell, on_clip)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of the model and its sampling")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the config, such as model.path=F")
    add("--work", type=Path, default=Path("runs/study"), help="folder of the cells; those found there are resumed")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the study; default: all")
    add("--captions", type=positive_number, default=100, help="main cells: captions for each number of things")
    add("--side-captions", type=positive_number, default=32, help="other cells: likewise, at most --captions")
    add(
        "--reference",
        type=positive_number,
        default=500,
        help="rendered clips that the Fréchet distance is to: likewise",
    )
    add("--seeds", type=positive_number, default=2, help="main cells: noise seeds for each caption")
    add("--slg-layers", type=int, nargs="+", help="blocks that SLG leaves out; default: one, at 0.3 of the depth")
    add("--batch", type=positive_number, default=16, help="clips sampled at once where no masks are drawn")
    add("--mask-batch", type=positive_number, default=1, help="where they are: these clips share their masks")
    return parser.parse_args(argv)


def main(
    argv: Sequence[str] | None = None,
    make_sampler: Callable[[Path, Sequence[str]], tuple[Any, dict[str, Any]]] = load_engine,
) -> int:
    args = parse(argv)
    try:
        run(*make_sampler(args.config, args.set), args)
    except S2VideoError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

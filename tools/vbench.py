"""VBench's videos from any model here, under the names that VBench looks for; and its one measure without weights.

    python tools/vbench.py prepare --info VBench_full_info.json --config configs/wan2.1-t2v-1.3b-480p.yaml \
        --output runs/vbench/wan-1.3b.yaml
    s2video batch runs/vbench/wan-1.3b.yaml
    python tools/vbench.py collect runs/vbench/wan-1.3b.yaml
    python tools/vbench.py flicker runs/vbench/wan-1.3b/vbench/s2_scale-0.25

docs/evidence/protocol.md tells the rest. VBench's prompts come from VBench's own file: none are kept here. Exit codes:
0 done, 1 videos are missing, 2 the input cannot be used.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from s2video.batch.run_file import load_batch
from s2video.config.run import read_config, read_values
from s2video.errors import InputError, S2VideoError
from s2video.media.formats import suffix_of
from s2video.media.video import video_frames
from s2video.study.measures import change
from s2video.system.files import atomic_folder, atomic_path, write_json

FLICKER = "temporal_flickering"
DIMENSIONS = (
    *("subject_consistency", "background_consistency", FLICKER, "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality", "object_class", "multiple_objects", "human_action", "color"),
    *("spatial_relationship", "scene", "temporal_style", "appearance_style", "overall_consistency"),
)
SEEDS_PER_PROMPT = 100  # so that a prompt's seeds do not depend on which dimensions and how many samples are chosen
MAX_NAME_BYTES = 255
NAMED = "vbench"  # below the batch's folder: the videos under VBench's names


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        args.run(args)
    except S2VideoError as error:
        print(f"vbench: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("prepare", help="write the run file of a batch, and its list of shots")
    command.set_defaults(run=prepare)
    command.add_argument("--info", type=Path, required=True, help="VBench_full_info.json, as the package vbench has it")
    command.add_argument("--config", type=Path, required=True, help="of the model, see configs/")
    command.add_argument("--output", type=Path, required=True, metavar="RUN.yaml", help="the videos go into RUN")
    command.add_argument("--dimensions", nargs="+", choices=DIMENSIONS, default=DIMENSIONS, metavar="D")
    command.add_argument("--samples", type=_count, default=5, help="videos of a prompt; VBench: 5")
    command.add_argument(
        "--flicker-samples", type=_count, default=25, help=f"of one of {FLICKER}, before VBench's static filter; 25"
    )
    command.add_argument("--s2-scales", type=float, nargs="+", default=[0.0, 0.25], help="ω; 0 is CFG")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")

    command = commands.add_parser("collect", help="put the videos of a batch under VBench's names")
    command.set_defaults(run=collect)
    command.add_argument("run_file", type=Path, metavar="RUN.yaml")

    command = commands.add_parser("flicker", help=f"{FLICKER} of folders of videos, as VBench defines it")
    command.set_defaults(run=flicker)
    command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of .mp4 files")
    command.add_argument("--info", type=Path, help=f"only videos of its prompts for {FLICKER}; default: all")
    command.add_argument("--json", type=Path, help="also write the score of every video there")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= SEEDS_PER_PROMPT:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {SEEDS_PER_PROMPT}, got {text[:60]!r}")
    return int(text)


def read_info(path: Path) -> dict[str, set[str]]:
    """Prompts in their order, each with the dimensions that it serves; of one that stands there twice, of both.

    Raises:
        InputError: a file that cannot be read, is not VBench's, or has a prompt that no file name can hold.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"info {path}: cannot be read ({error.strerror}): it comes with `pip install vbench`"
        ) from None
    except ValueError as error:
        raise InputError(f"info {path}: not usable as JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"info {path}: expected a list of prompts, as VBench_full_info.json is, got something else")
    prompts: dict[str, set[str]] = {}
    for number, entry in enumerate(entries, 1):
        prompt, dimensions = _entry(entry, f"info {path}, entry {number}")
        prompts.setdefault(prompt, set()).update(dimensions)
    return prompts


def _entry(entry: Any, where: str) -> tuple[str, list[str]]:
    prompt = entry.get("prompt_en") if isinstance(entry, dict) else None
    dimensions = entry.get("dimension") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(dimensions, list):
        raise InputError(f"{where}: expected an object with prompt_en, a text, and dimension, a list; got others")
    if unknown := [name for name in dimensions if name not in DIMENSIONS]:
        raise InputError(
            f"{where}: expected dimensions of VBench 0.1.5, got {unknown[0]!r}: is this VBench's own file?"
        )
    if set(prompt) & {"/", "\0"} or len(video_name(prompt, SEEDS_PER_PROMPT).encode()) > MAX_NAME_BYTES:
        raise InputError(f"{where}: VBench names files by the prompt, and no file name can hold {prompt[:60]!r}")
    return prompt, dimensions


def video_name(prompt: str, sample: int) -> str:
    """As VBench looks for it (vbench/__init__.py); samples count from 0."""
    return f"{prompt}-{sample}.mp4"


def prepare(args: argparse.Namespace) -> None:
    """RUN.yaml and RUN.jsonl. Every sample has a seed of its own, and the same one under every ω."""
    info, output = read_info(args.info), args.output
    if output.suffix != ".yaml":
        raise InputError(f"--output: expected a name that ends in .yaml, got {output.name!r}")
    codec = read_config(args.config, args.set).output.codec
    if suffix_of(codec) != ".mp4":
        raise InputError(f"output.codec: VBench wants .mp4 files, got {codec}: use auto")
    values = read_values(args.config, args.set)
    for key in ("prompt", "image", "last_image", "control"):
        values.pop(key, None)
    for section, key in (("output", "path"), ("guidance", "s2_scale")):
        values[section] = {k: v for k, v in (values.get(section) or {}).items() if k != key}
    shots = list(_shots(info, set(args.dimensions), args.samples, args.flicker_samples))
    if not shots:
        raise InputError(f"info {args.info}: has no prompt for {', '.join(args.dimensions)}")
    shot_file = output.with_suffix(".jsonl")
    values |= {
        "shots": shot_file.name,
        "sweep": {"guidance.s2_scale": args.s2_scales},
        "folder": str(output.with_suffix("")),
        "name": "s2_scale-{s2_scale}/{shot}-{sample}.{ext}",
    }
    _write(shot_file, "".join(f"{json.dumps(shot, ensure_ascii=False)}\n" for shot in shots))
    _write(output, yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=1000))
    num_prompts = len({shot["shot"] for shot in shots})
    print(f"{output}: {num_prompts} prompts, {len(shots)} videos for each of {len(args.s2_scales)} values of ω")


def _shots(info: dict[str, set[str]], wanted: set[str], samples: int, flicker_samples: int) -> Iterator[dict[str, Any]]:
    for number, (prompt, dimensions) in enumerate(info.items(), 1):
        if not dimensions & wanted:
            continue
        for sample in range(flicker_samples if FLICKER in dimensions & wanted else samples):
            yield {
                "shot": f"{number:04d}",
                "prompt": prompt,
                "sampling.seed": number * SEEDS_PER_PROMPT + sample,
                "fields.sample": sample,
            }


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def collect(args: argparse.Namespace) -> None:
    """Hard links to what is made, a folder for each ω. The batch's own names are safe everywhere, VBench's are not."""
    batch = load_batch(args.run_file)
    if batch.problems:
        raise InputError(batch.problems[0])
    groups: dict[str, dict[str, Path]] = {}
    for job in batch.jobs:
        place = Path(job.config.output.path)
        name = video_name(job.config.prompt or "", int(place.stem.rpartition("-")[2]))
        groups.setdefault(place.parent.name, {})[name] = place
    missing = 0
    for group, videos in groups.items():
        made = {name: place for name, place in videos.items() if place.is_file()}
        missing += len(videos) - len(made)
        folder = batch.folder / NAMED / group
        with atomic_folder(folder, lambda name: name.endswith(".mp4")) as temporary:
            for name, place in made.items():
                try:
                    os.link(place, temporary / name)
                except FileExistsError:
                    raise InputError(
                        f"{folder}: {name!r} is there in other letters, and this file system takes no notice of case: "
                        "make and collect the videos on another one"
                    ) from None
        print(f"{folder}: {len(made)} of {len(videos)} videos")
    if missing:
        raise S2VideoError(f"{missing} videos are missing: s2video batch {args.run_file} makes them")


def flicker(args: argparse.Namespace) -> None:
    """A row for each folder: the mean of its videos' scores, times 100 as leaderboards have it."""
    prompts = None
    if args.info is not None:
        prompts = {prompt for prompt, dimensions in read_info(args.info).items() if FLICKER in dimensions}
    results = {}
    for folder in args.folders:
        videos = sorted(folder.glob("*.mp4"))
        if prompts is not None:
            videos = [video for video in videos if video.stem.rpartition("-")[0] in prompts]
        if not videos:
            raise InputError(
                f"{folder}: expected .mp4 files{'' if prompts is None else ' of such prompts'}, found none"
            )
        scores = {video.name: flicker_score(video) for video in videos}
        mean = sum(scores.values()) / len(scores)
        results[str(folder)] = {FLICKER: mean, "videos": scores}
        print(f"{100 * mean:.2f}  {len(scores)} videos  {folder}")
    if args.json is not None:
        write_json(args.json, results)


def flicker_score(video: Path) -> float:
    """1 − the mean absolute difference of successive frames, 8-bit RGB, over 255: 1 for a still, in [0, 1].

    Raises:
        InputError: no video file, or fewer than two frames.
    """
    changes = [change(before, after) for before, after in pairwise(video_frames(video))]
    if not changes:
        raise InputError(f"{video}: expected at least two frames, got fewer; use a longer video")
    return 1 - sum(changes) / len(changes)


if __name__ == "__main__":
    sys.exit(main())

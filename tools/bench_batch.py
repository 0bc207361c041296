"""Videos an hour: one batch, as many separate processes, and a plain loop over diffusers' WanPipeline.

    python tools/bench_batch.py [--videos 20] [--steps 12] [--json FILE]

All three make the same videos (shapes-wan, CFG without S², which diffusers does not have) and are timed from the start
of their first process to the end of their last one, imports and loading included; the loop writes its videos with this
project's encoder. Ratios are from one run, but machines are noisy: run it on an idle one. Nothing here is asserted.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from s2video.files import write_json
from s2video.records.sidecar import versions

SHAPES = ("red circle", "green triangle", "blue square", "cyan circle", "yellow square")
DIRECTIONS = ("left", "right", "up", "down")
SIZE = {"width": 64, "height": 64, "num_frames": 17}
CFG_SCALE = 3.0
MAX_SEQUENCE_LENGTH = 64


def prompts(count: int) -> list[str]:
    made = [f"a large {shape} moving {way} on a gray background" for shape in SHAPES for way in DIRECTIONS]
    return [made[i % len(made)] for i in range(count)]


def config(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": {"path": "shapes-wan"},
        "sampling": {**SIZE, "num_inference_steps": args.steps, "max_sequence_length": MAX_SEQUENCE_LENGTH},
        "guidance": {"cfg_scale": CFG_SCALE, "s2_scale": 0.0},
        "output": {"fps": 8},
    }


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def batch(folder: Path, args: argparse.Namespace) -> None:
    shots = [{"prompt": p, "sampling.seed": seed} for seed, p in enumerate(prompts(args.videos))]
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({**config(args), "shots": shots, "folder": str(folder / "batch")}))
    run([sys.executable, "-m", "s2video", "batch", str(file)])


def processes(folder: Path, args: argparse.Namespace) -> None:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config(args)))
    for seed, prompt in enumerate(prompts(args.videos)):
        command = [sys.executable, "-m", "s2video", "generate", "--config", str(file), "--prompt", prompt]
        run([*command, "--seed", str(seed), "--output", str(folder / "processes" / f"{seed}.mp4")])


def loop(folder: Path, args: argparse.Namespace) -> None:
    run(
        [
            sys.executable,
            __file__,
            "--loop",
            str(folder / "loop"),
            "--videos",
            str(args.videos),
            "--steps",
            str(args.steps),
        ]
    )


def plain_loop(folder: Path, args: argparse.Namespace) -> None:
    """In a process of its own: what one writes with diffusers."""
    from diffusers import WanPipeline

    from s2video.config import build_config
    from s2video.media.video import VideoSpec, write_video
    from s2video.models.loading import find_checkpoint

    pipeline = WanPipeline.from_pretrained(find_checkpoint("shapes-wan"), torch_dtype=torch.float32)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    spec = VideoSpec(build_config(config(args)).output.fps)
    for seed, prompt in enumerate(prompts(args.videos)):
        frames = pipeline(
            prompt,
            **SIZE,
            num_inference_steps=args.steps,
            guidance_scale=CFG_SCALE,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            output_type="pt",
        ).frames
        write_video([frames[0].permute(0, 2, 3, 1).float().cpu()], folder / f"{seed}.mp4", spec, metadata={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        return plain_loop(args.loop, args)
    ways: dict[str, Callable[[Path, argparse.Namespace], None]] = {"batch": batch, "loop": loop, "processes": processes}
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        for way, make in ways.items():
            start = time.perf_counter()
            make(Path(name), args)
            seconds[way] = time.perf_counter() - start
            made = len(list((Path(name) / way).glob("*.mp4")))
            print(f"{way:10} {seconds[way]:8.1f} s  {3600 * made / seconds[way]:8.1f} videos an hour", flush=True)
            assert made == args.videos, f"{way} made {made} videos"
    ratios = {f"batch / {way}": seconds[way] / seconds["batch"] for way in ("loop", "processes")}
    for name, ratio in ratios.items():
        print(f"throughput, {name}: {ratio:.3f}")
    if args.json:
        report = {
            "machine": platform.machine(),
            "threads": os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads(),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "versions": versions(),
            "date": time.strftime("%Y-%m-%d"),
            "videos": args.videos,
            "steps": args.steps,
            "seconds": seconds,
            "ratios": ratios,
        }
        write_json(args.json, report)
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()

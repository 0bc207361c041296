"""Videos an hour: one batch, as many separate processes, and a plain loop over diffusers' WanPipeline.

All three make the same videos (shapes-wan, CFG without S², which diffusers does not have) and are timed from the start
of their first process to the end of their last one, imports and loading included; the loop writes its videos with this
project's encoder.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import WanPipeline

from benches.rows import Section, measured
from benches.workloads import Options, apart, seconds
from s2video.config.run import build_config
from s2video.media.video import VideoSpec, write_video
from s2video.models.checkpoint import find_checkpoint
from s2video.parallel.mesh import Mesh

SHAPES = ("red circle", "green triangle", "blue square", "cyan circle", "yellow square")
DIRECTIONS = ("left", "right", "up", "down")
PROMPTS = [f"a large {shape} moving {way} on a gray background" for shape in SHAPES for way in DIRECTIONS]
SIZE = {"width": 64, "height": 64, "num_frames": 17}
CFG_SCALE = 3.0
MAX_SEQUENCE_LENGTH = 64


def config(num_steps: int) -> dict[str, Any]:
    return {
        "model": {"path": "shapes-wan", "device": "cpu"},
        "sampling": {**SIZE, "num_inference_steps": num_steps, "max_sequence_length": MAX_SEQUENCE_LENGTH},
        "guidance": {"cfg_scale": CFG_SCALE, "s2_scale": 0.0},
        "output": {"fps": 8},
    }


def run_s2video(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "s2video", *arguments], check=True, stdout=subprocess.DEVNULL)


def as_batch(folder: Path, num_videos: int, num_steps: int) -> None:
    shots = [{"prompt": p, "sampling.seed": seed} for seed, p in enumerate(PROMPTS[:num_videos])]
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({**config(num_steps), "shots": shots, "folder": str(folder / "batch")}), "utf-8")
    run_s2video("batch", str(file))


def as_processes(folder: Path, num_videos: int, num_steps: int) -> None:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config(num_steps)), "utf-8")
    for seed, prompt in enumerate(PROMPTS[:num_videos]):
        output = folder / "processes" / f"{seed}.mp4"
        run_s2video("generate", "--config", str(file), "--prompt", prompt, "--seed", str(seed), "--output", str(output))


def as_loop(folder: Path, num_videos: int, num_steps: int) -> None:
    apart("many_videos.diffusers_loop", folder=str(folder / "loop"), num_videos=num_videos, num_steps=num_steps)


def diffusers_loop(mesh: Mesh, folder: str, num_videos: int, num_steps: int) -> None:
    """What one writes with diffusers."""
    pipeline = WanPipeline.from_pretrained(find_checkpoint("shapes-wan"), dtype=torch.float32)
    spec = VideoSpec(build_config(config(num_steps)).output.fps)
    for seed, prompt in enumerate(PROMPTS[:num_videos]):
        frames = pipeline(
            prompt,
            **SIZE,
            num_inference_steps=num_steps,
            guidance_scale=CFG_SCALE,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            output_type="pt",
        ).frames
        write_video([frames[0].permute(0, 2, 3, 1).float()], Path(folder) / f"{seed}.mp4", spec, metadata={})


def bench(options: Options) -> Section:
    num_videos, num_steps, repeats = (1, 1, 1) if options.quick else (len(PROMPTS), 12, max(1, options.repeats // 2))
    ways: dict[str, Callable[[Path, int, int], None]] = {
        "batch": as_batch,
        "loop": as_loop,
        "processes": as_processes,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, make in ways.items():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                times[way].append(seconds(partial(make, folder, num_videos, num_steps)))
                made = len(list((folder / way).glob("*.mp4")))
                assert made == num_videos, f"{way} made {made} videos"
    what = f"{num_videos} videos of {num_steps} steps, shapes-wan, seconds of"
    rows = [
        measured(f"{what} a loop over diffusers' pipeline / one batch", times["loop"], times["batch"], "at least 1"),
        measured(f"{what} separate processes / one batch", times["processes"], times["batch"], "above 1"),
    ]
    return Section(rows, {"num_videos": num_videos, "num_steps": num_steps, "seconds": times})

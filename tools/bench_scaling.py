"""One S² step on N ranks of one thread each against one such rank, and what the plan predicts for a large model.

    python tools/bench_scaling.py [--ranks 2] [--repeats 3] [--json FILE]

Measured: Wan 1.3B scaled down to the CPU, every mesh taking turns with one rank in the same processes, the other ranks
being asleep meanwhile; every S² step has the same mask, and CFG and S² steps are weighed as the default window does.
Predicted: Wan 2.1 14B at 720p on H100s, by `s2video plan`; no GPU is used, and nothing of it is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench import scaled_wan

from s2video.config import ParallelConfig, load_config
from s2video.files import write_json
from s2video.forward import predict
from s2video.masks import MaskSpec, dropped_blocks
from s2video.models.base import Conditioning
from s2video.models.wan import WanBlockModel
from s2video.parallel.mesh import Mesh, build_mesh, init_mesh
from s2video.planning.cards import CARDS
from s2video.planning.plan import make_plan

LATENT_SHAPE = (5, 26, 32)
WINDOW = 0.8  # of the steps
PREDICTED = Path(__file__).resolve().parent.parent / "configs" / "wan2.1-t2v-14b-720p.yaml"


def layouts(size: int) -> dict[str, ParallelConfig]:
    named = {f"ulysses {size}": ParallelConfig(ulysses=size), f"ring {size}": ParallelConfig(ring=size)}
    if size % 2 == 0:
        named[f"ulysses {size // 2} × branch 2"] = ParallelConfig(ulysses=size // 2, branch=2)
    return named


@torch.no_grad()
def measure(world: Mesh, repeats: int) -> dict[str, float]:
    """Seconds of a mean step, by layout; "alone" is rank 0 by itself."""
    model = WanBlockModel(scaled_wan())
    latents = torch.randn(1, 16, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    cond, uncond = (Conditioning(torch.ones(1, 64, 256) * value) for value in (0.1, 0.0))
    mask = dropped_blocks(MaskSpec(), num_blocks=model.num_blocks, seed=0, step=0)
    meshes = {"alone": Mesh(world.device)}
    meshes |= {name: build_mesh(parallel, world.device) for name, parallel in layouts(world.world.size).items()}
    seconds: dict[str, list[float]] = {name: [] for name in meshes}
    for repeat in range(repeats + 1):
        for name, mesh in meshes.items():
            times = []
            for masks in ([], [mask]):
                dist.barrier()
                start = time.perf_counter()
                if name != "alone" or world.is_main:
                    predict(model, latents, torch.tensor([500]), mesh=mesh, cond=cond, uncond=uncond, masks=masks)
                times.append(time.perf_counter() - start)
            if repeat > 0:  # the first one is for warming up
                seconds[name].append((1 - WINDOW) * times[0] + WINDOW * times[1])
    return {name: statistics.median(times) for name, times in seconds.items()}


def predict_scaling(worlds: tuple[int, ...] = (1, 2, 4, 8)) -> list[dict[str, Any]]:
    config = load_config(PREDICTED)
    rows: list[dict[str, Any]] = []
    for world in worlds:
        best = make_plan(config, world, CARDS["H100"]).best
        rows.append({"ranks": world, "mesh": list(best.degrees), "seconds": best.forecast.seconds})
    return rows


def print_report(report: dict[str, Any]) -> None:
    measured = report["measured"]
    print("\nMeasured: a mean S² step, Wan 1.3B scaled down, one thread a rank")
    for name, seconds in measured.items():
        print(f"  {name:<24}{seconds * 1e3:>8.0f} ms{measured['alone'] / seconds:>7.2f} times one rank")
    print("Predicted, not measured: a mean S² step, Wan 2.1 14B at 720p, H100s, best mesh")
    first = report["predicted"][0]["seconds"]
    for row in report["predicted"]:
        mesh = " × ".join(map(str, row["mesh"]))
        print(
            f"  {row['ranks']} rank(s), {mesh:<12}{row['seconds']:>8.2f} s{first / row['seconds']:>8.2f} times one rank"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--json", type=Path, help="also write everything there")
    args = parser.parse_args()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(args.repeats)], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    report = {"measured": json.loads(done.stdout), "predicted": predict_scaling()}
    print_report(report)
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    if "RANK" not in os.environ:
        main()
    else:
        torch.set_num_threads(1)
        with init_mesh(ParallelConfig(), "cpu") as joined:
            result = measure(joined, int(sys.argv[1]))
            if joined.is_main:
                print(json.dumps(result))

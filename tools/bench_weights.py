"""What it costs to bring weights: one fetch of a block a step against one a pass, and the memory that loading takes.

    python tools/bench_weights.py [--json FILE] [--only fetch load]

fetch    blocks streamed from CPU memory (on the CPU: copied), all branches in lockstep against one pass after another
load     each rank's peak memory above the level before, while it loads its part, beside weights / ranks

Variants take turns and medians are compared. Nothing here is asserted.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from s2video.config import ParallelConfig
from s2video.files import write_json
from s2video.forward import predict
from s2video.models.base import Conditioning
from s2video.models.parts import place_transformer
from s2video.models.wan import WanBlockModel
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Mesh, init_mesh
from s2video.parallel.traffic import count_traffic
from s2video.parallel.weights import BlockWeights
from s2video.records.sidecar import versions

BLOCKS = ("blocks",)

ALONE = Mesh(torch.device("cpu"))
NUM_BLOCKS, DROPPED = 24, (5, 13)


def save_transformer(folder: Path) -> int:
    """A random Wan transformer in float32, in one file, as a checkpoint's folder has it; returns its bytes."""
    model = WanTransformer3DModel(
        num_attention_heads=8, attention_head_dim=64, ffn_dim=2048, num_layers=NUM_BLOCKS, text_dim=256, freq_dim=256
    )
    model.save_pretrained(folder / "transformer")
    write_json(folder / "model_index.json", {"transformer": ["diffusers", "WanTransformer3DModel"]})
    return sum(p.nbytes for p in model.parameters())


def pass_by_pass(
    model: WanBlockModel,
    weights: BlockWeights,
    latents: Tensor,
    timestep: Tensor,
    told: list[tuple[Conditioning, tuple[int, ...]]],
) -> list[Tensor]:
    """Predictions one after the other, each fetching every block; with each conditioning go the blocks left out."""
    plan = AttentionPlan.even(ALONE.sequence, model.num_tokens(latents))
    outputs = []
    for conditioning, dropped in told:
        context = model.prepare(latents, timestep, conditioning, plan)
        state = model.embed(latents, context)
        for index in range(model.num_blocks):
            with weights.block(index):
                if index not in dropped:
                    state = model.run_block(index, state, context)
        outputs.append(model.project(state, context))
    return outputs


@torch.no_grad()
def bench_fetch(folder: Path, repeats: int) -> dict[str, Any]:
    """One step with cond, uncond and sub; the sub pass computes its prefix again both times."""
    transformer, weights = place_transformer(folder, torch.float32, ALONE, ParallelConfig(weights="streamed"), BLOCKS)
    model = WanBlockModel(transformer)
    latents, timestep = torch.randn(1, 16, 1, 8, 8), torch.tensor([500])
    cond, uncond = (Conditioning(torch.randn(1, 8, 256)) for _ in range(2))

    def lockstep() -> list[Tensor]:
        got = predict(
            model,
            latents,
            timestep,
            mesh=ALONE,
            cond=cond,
            uncond=uncond,
            masks=[DROPPED],
            weights=weights,
            share_prefix=False,
        )
        return [got.cond, cast(Tensor, got.uncond), *got.subs]

    def one_by_one() -> list[Tensor]:
        return pass_by_pass(model, weights, latents, timestep, [(cond, ()), (uncond, ()), (cond, DROPPED)])

    def fetches_alone() -> None:
        for index in range(model.num_blocks):
            with weights.block(index):
                pass

    equal = all(torch.equal(a, b) for a, b in zip(lockstep(), one_by_one(), strict=True))
    fetched, times = {}, {}
    ways: dict[str, Callable[[], Any]] = {
        "lockstep": lockstep,
        "pass by pass": one_by_one,
        "fetches alone": fetches_alone,
    }
    for name, run in ways.items():
        with count_traffic() as traffic:
            run()
        fetched[name] = traffic.sent["weights"]
        times[name] = list[float]()
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {
        "fetched_bytes": fetched,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "bitwise_equal": equal,
    }


def print_fetch(result: dict[str, Any]) -> None:
    fetched, seconds = result["fetched_bytes"], result["seconds"]
    print(f"\nOne step, cond, uncond and sub, {NUM_BLOCKS} blocks streamed; results equal: {result['bitwise_equal']}")
    for name in fetched:
        print(f"  {name:<14}{fetched[name] / 2**20:>8.0f} MiB fetched{seconds[name] * 1e3:>8.0f} ms")
    ratios = [values["pass by pass"] / values["lockstep"] for values in (fetched, seconds)]
    print(f"  pass by pass / lockstep: {ratios[0]:.2f} in bytes, {ratios[1]:.2f} in seconds")


def load_peak(folder: Path, kind: Any) -> None:
    """In a rank: print the peak in bytes; `/proc` has the high-water mark and can reset it."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    parallel = ParallelConfig(weights=kind)
    with init_mesh(parallel, "cpu") as mesh:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        kept = place_transformer(folder, torch.float32, mesh, parallel, BLOCKS)
        sys.stdout.write(f"{status('VmHWM') - before}\n")  # in one piece: ranks share the pipe
        del kept


def bench_load(folder: Path, size: int) -> list[dict[str, Any]]:
    ways = [("streamed", 1), ("fsdp", 2), ("fsdp", 3)]  # on a CPU, whole ones are mapped from the file and not read
    if importlib.util.find_spec("deepspeed"):
        ways += [("zero3", 2)]
    rows = []
    for kind, ranks in ways:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += [__file__, "--load-peak", kind, str(folder)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append({"weights": kind, "ranks": ranks, "size": size, "peaks": sorted(map(int, printed))})
    return rows


def print_load(rows: list[dict[str, Any]]) -> None:
    print(f"\nLoading {rows[0]['size'] / 2**20:.0f} MiB of weights in float32, each rank's peak above the level before")
    for row in rows:
        ranks, share = row["ranks"], row["size"] / row["ranks"]
        peaks = ", ".join(f"{peak / 2**20:.0f}" for peak in row["peaks"])
        print(f"  {row['weights']:<11}{ranks} rank(s)  {peaks} MiB; weights / ranks {share / 2**20:.0f} MiB", end="")
        print(f"; ratio {max(row['peaks']) / share:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["fetch", "load"], default=["fetch", "load"])
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each; the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write everything there")
    parser.add_argument("--load-peak", nargs=2, metavar=("WEIGHTS", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.load_peak:
        load_peak(Path(args.load_peak[1]), args.load_peak[0])
        return

    report: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "threads": args.threads}
    report |= {"versions": versions(), "date": time.strftime("%Y-%m-%d")}
    print(f"{report['machine']}, {args.threads} threads, {json.dumps(report['versions'])}")
    with tempfile.TemporaryDirectory() as name:
        size = save_transformer(Path(name))
        if "fetch" in args.only:
            report["fetch"] = bench_fetch(Path(name), args.repeats)
            print_fetch(report["fetch"])
        if "load" in args.only:
            report["load"] = bench_load(Path(name), size)
            print_load(report["load"])
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    main()

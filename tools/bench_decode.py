"""Decoding by N ranks of one thread each against one such rank, run and reported by bench.py.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node N tools/bench_decode.py [REPEATS]

The two take turns in the same processes, the other ranks being asleep while rank 0 decodes alone.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from s2video.geometry import LatentShape
from s2video.models.decoder import DecodeMode, FrameDecoder
from s2video.models.loading import find_checkpoint, load_vae
from s2video.parallel.mesh import Mesh, init_mesh
from s2video.parallel.traffic import count_traffic
from s2video.settings import ParallelConfig

SIZE = {"num_frames": 33, "height": 256, "width": 256}
MODES: tuple[DecodeMode, ...] = ("serial", "sharded")


def bench_ranks(num_ranks: int, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(repeats)], check=True, capture_output=True, text=True, env=environment
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def print_ranks(result: dict[str, Any]) -> None:
    size, seconds = result["size"], result["seconds"]
    print(f"\nDecoding {size['width']}x{size['height']}, {size['num_frames']} frames, shapes-wan, one thread a rank")
    print(f"  1 rank {seconds['serial']:.2f} s, {result['num_ranks']} ranks {seconds['sharded']:.2f} s", end="")
    print(f", {result['speedup']:.2f} times as fast", end="")
    if result["num_ranks"] == 2:
        print(f"  (at least 1.70: {'met' if result['speedup'] >= 1.7 else 'NOT met'})", end="")
    print(f"\n  {result['sent_mib']:.1f} MiB sent by rank 1; largest difference {result['difference']:.1e}")


def measure(mesh: Mesh, repeats: int) -> dict[str, Any]:
    shape = LatentShape.from_pixels(**SIZE, temporal_factor=4, spatial_factor=8)
    vae = load_vae(find_checkpoint("shapes-wan"), torch.float32, mesh.device)
    decoders = {
        mode: FrameDecoder(mode, mesh, shape, vae_class=type(vae).__name__, load_vae=lambda: vae, timeout_seconds=600.0)
        for mode in MODES
    }
    latents = torch.randn(1, 16, shape.frames, shape.height, shape.width, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    frames: dict[str, list[torch.Tensor]] = {}
    with count_traffic() as traffic:
        for repeat in range(repeats + 1):
            for mode in MODES:
                dist.barrier()
                start = time.perf_counter()
                frames[mode] = list(decoders[mode](latents))
                if repeat > 0:  # the first one is for warming up
                    seconds[mode].append(time.perf_counter() - start)
    sent = torch.tensor([traffic.total / (repeats + 1)])
    dist.broadcast(sent, src=min(1, mesh.world.size - 1))
    if not mesh.is_main:
        return {}
    medians = {mode: statistics.median(times) for mode, times in seconds.items()}
    return {
        "size": SIZE,
        "num_ranks": mesh.world.size,
        "seconds": medians,
        "speedup": medians["serial"] / medians["sharded"],
        "sent_mib": sent.item() / 2**20,
        "difference": (torch.cat(frames["sharded"]) - torch.cat(frames["serial"])).abs().max().item(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with init_mesh(ParallelConfig(), "cpu") as joined:
        report = measure(joined, int(sys.argv[1]) if len(sys.argv) > 1 else 3)
        if joined.is_main:
            print(json.dumps(report))

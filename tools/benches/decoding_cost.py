"""Latents -> frames: peak memory for short and long videos, and two ranks of one thread against one."""

import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benches.rows import Row, Section, measured
from benches.two_ranks import GOAL
from benches.weight_fetching import memory_status
from benches.workloads import Options, apart
from s2video.decoding.decoder import DecodeMode, FrameDecoder
from s2video.decoding.whole import decode_frames
from s2video.geometry import LatentShape
from s2video.media.video import VideoSpec, write_video
from s2video.models.checkpoint import Checkpoint, find_checkpoint
from s2video.models.loading import load_vae
from s2video.parallel.mesh import Mesh
from s2video.parallel.traffic import count_traffic

# glibc: what is freed goes back at once, so that the high-water mark is what was in use, not what was kept for later
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
MODES: tuple[DecodeMode, ...] = ("serial", "sharded")
APART = "each alone"  # both ranks decode the whole video at once


def peak(mesh: Mesh, num_frames: int, height: int, width: int) -> int:
    """Bytes above the level before, while a video is decoded and encoded; in a process of its own."""
    vae = load_vae(Checkpoint(find_checkpoint("shapes-wan")), torch.float32, mesh.device)
    latents = torch.randn(1, 16, (num_frames - 1) // 4 + 1, height // 8, width // 8)
    with tempfile.TemporaryDirectory() as folder:
        for _ in decode_frames(vae, latents[:, :, :2]):  # libraries and thread pools set up before the baseline
            pass
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = memory_status("VmRSS")
        write_video(decode_frames(vae, latents), Path(folder) / "out.mp4", VideoSpec(Fraction(8)), metadata={})
    return memory_status("VmHWM") - before


def memory(options: Options) -> Section:
    """Each length in a process of its own, so that one's leftovers do not hide the other's needs."""
    # half the side of a 480p picture: the frames, not the libraries, are what could fill memory
    size = {"height": 32, "width": 32} if options.quick else {"height": 240, "width": 416}
    short, long = (5, 9) if options.quick else (17, 161)
    peaks = {n: apart("decoding_cost.peak", environment=GIVE_BACK, num_frames=n, **size)[0] for n in (short, long)}
    row = measured(
        f"{long} frames / {short} frames, {size['width']}x{size['height']}, decoded to MP4: peak memory above the base",
        [peaks[long]],
        [peaks[short]],
        f"1 ± 0.1 ({peaks[long] / 2**20:.0f} MiB, {peaks[short] / 2**20:.0f} MiB)",
    )
    return Section([row], {"peak_bytes": {str(n): value for n, value in peaks.items()}, **size})


def time_ranks(mesh: Mesh, num_frames: int, side: int, repeats: int) -> dict[str, Any]:
    """Seconds by mode, in turns, the other ranks being asleep while rank 0 decodes alone."""
    torch.set_num_threads(1)
    shape = LatentShape.from_pixels(num_frames=num_frames, height=side, width=side, temporal_factor=4, spatial_factor=8)
    vae = load_vae(Checkpoint(find_checkpoint("shapes-wan")), torch.float32, mesh.device)
    meshes = {mode: (mode, mesh) for mode in MODES} | {APART: ("serial", Mesh(mesh.device))}
    decoders = {
        name: FrameDecoder(mode, of, shape, vae_class=type(vae).__name__, load_vae=lambda: vae, timeout_seconds=600.0)
        for name, (mode, of) in meshes.items()
    }
    latents = torch.randn(1, 16, shape.frames, shape.height, shape.width, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in decoders}
    frames: dict[str, list[torch.Tensor]] = {}
    with count_traffic() as traffic:
        for repeat in range(repeats + 1):
            for name, decoder in decoders.items():
                dist.barrier()
                start = time.perf_counter()
                frames[name] = list(decoder(latents))
                if name == APART:
                    dist.barrier()
                if repeat > 0:  # the first one is for warming up
                    times[name].append(time.perf_counter() - start)
    found: dict[str, Any] = {"seconds": times, "sent": traffic.total / (repeats + 1)}
    if mesh.is_main:
        found["difference"] = (torch.cat(frames["sharded"]) - torch.cat(frames["serial"])).abs().max().item()
    return found


def on_ranks(options: Options) -> Section:
    num_frames, side = (5, 64) if options.quick else (33, 256)
    by_rank = apart("decoding_cost.time_ranks", num_ranks=2, num_frames=num_frames, side=side, repeats=options.repeats)
    times = by_rank[0]["seconds"]
    row = measured(
        f"One rank / 2 ranks, seconds of decoding {side}x{side}x{num_frames}, shapes-wan",
        times["serial"],
        times["sharded"],
        f"at least 1.7; largest difference {by_rank[0]['difference']:.0e}",
    )
    half = [taken / 2 for taken in times[APART]]
    ceiling = measured("The same, of what two independent processes reach", half, times["sharded"], f"at least {GOAL}")
    return Section([row, ceiling], {"by_rank": by_rank, "num_frames": num_frames, "side": side})


def bench(options: Options) -> Section:
    parts = [memory(options), on_ranks(options)]
    rows: list[Row] = [row for part in parts for row in part.rows]
    return Section(rows, {"memory": parts[0].raw, "ranks": parts[1].raw})

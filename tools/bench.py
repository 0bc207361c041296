"""What S²-Guidance costs here, as ratios measured in one run.

    python tools/bench.py [--json FILE] [--only step engine decode traffic]

step     S²/CFG for one step inside the window, prefix shared and recomputed, beside the arithmetic for the masks drawn
engine   CFG in this engine against diffusers' WanPipeline, seconds a step
decode   peak memory above the level before decoding, for 17 and for 161 frames; 2 ranks of one thread against 1
traffic  what two ranks send in a step, beside the least that Ulysses and the ring allow (see tools/traffic.py)

Variants take turns and medians are compared, because machines are noisy; still, run it on an idle machine. Nothing
here is asserted: whether a target is met is printed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_decode import bench_ranks, print_ranks
from diffusers import WanPipeline, WanTransformer3DModel

from s2video.config import RunConfig, build_config
from s2video.files import write_json
from s2video.forward import predict
from s2video.masks import MaskSpec, dropped_blocks
from s2video.models.base import Conditioning
from s2video.models.loading import find_checkpoint, load_transformer, load_vae
from s2video.models.vae import decode_frames
from s2video.models.wan import WanBlockModel
from s2video.parallel.mesh import Mesh
from s2video.pipeline import Engine
from s2video.records.sidecar import versions

ALONE = Mesh(torch.device("cpu"))
# glibc: what is freed goes back at once, so that the high-water mark is what was in use, not what was kept for later
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}

PROMPT = "a small red circle moving left and a large blue square moving up on a gray background"
CPU = torch.device("cpu")


def scaled_wan() -> WanTransformer3DModel:
    """Wan 1.3B's 30 blocks and 12 heads, with heads of 16 instead of 128 and the feed-forward scaled alike."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=16, ffn_dim=1120, num_layers=30, text_dim=256, freq_dim=256
    )
    return model.eval().requires_grad_(False)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def bench_step(
    name: str,
    transformer: WanTransformer3DModel,
    latent_shape: tuple[int, int, int],
    tokens: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Ratios of S² to CFG over several masks; each mask's time is the median of its repeats."""
    model = WanBlockModel(transformer)
    num_blocks, spec = model.num_blocks, MaskSpec()
    latents = torch.randn(1, 16, *latent_shape)
    text = [Conditioning(torch.randn(1, tokens, transformer.config.text_dim)) for _ in range(2)]
    timestep = torch.tensor([500])

    def step(masks: list[tuple[int, ...]], share_prefix: bool = True) -> float:
        return seconds(
            lambda: predict(
                model,
                latents,
                timestep,
                mesh=ALONE,
                cond=text[0],
                uncond=text[1],
                masks=masks,
                share_prefix=share_prefix,
            )
        )

    masks = [dropped_blocks(spec, num_blocks=num_blocks, seed=0, step=i) for i in range(args.masks)]
    step([masks[0]])
    rows = []
    for mask in masks:
        times: dict[str, list[float]] = {"cfg": [], "shared": [], "recomputed": []}
        for _ in range(args.repeats):
            times["cfg"].append(step([]))
            times["shared"].append(step([mask]))
            times["recomputed"].append(step([mask], share_prefix=False))
        rows.append({key: statistics.median(values) for key, values in times.items()})
    cfg = statistics.median(row["cfg"] for row in rows)
    measured = {key: statistics.fmean(row[key] for row in rows) / cfg for key in ("shared", "recomputed")}
    dropped = len(masks[0])
    arithmetic = {
        "shared": 1 + (num_blocks - statistics.fmean(m[0] for m in masks) - dropped) / (2 * num_blocks),
        "recomputed": 1 + (num_blocks - dropped) / (2 * num_blocks),
    }
    first = 1 + (num_blocks - 1 - dropped) / (dropped + 1)
    return {
        "model": name,
        "num_blocks": num_blocks,
        "dropped": dropped,
        "masks": masks,
        "seconds_cfg": cfg,
        "measured": measured,
        "arithmetic_for_these_masks": arithmetic,
        "arithmetic_in_expectation": {
            "shared": 1 + (num_blocks - first - dropped) / (2 * num_blocks),
            "recomputed": arithmetic["recomputed"],
        },
    }


def print_step(result: dict[str, Any]) -> None:
    print(f"\nS²/CFG, one step inside the window: {result['model']}, {result['num_blocks']} blocks, ", end="")
    print(f"{result['dropped']} dropped, CFG step {result['seconds_cfg'] * 1e3:.0f} ms")
    print(f"  {'prefix':<12}{'measured':>10}{'arithmetic':>12}{'expected':>10}{'deviation':>11}")
    for key in ("shared", "recomputed"):
        measured, arithmetic = result["measured"][key], result["arithmetic_for_these_masks"][key]
        expected = result["arithmetic_in_expectation"][key]
        print(f"  {key:<12}{measured:>10.3f}{arithmetic:>12.3f}{expected:>10.3f}{measured / arithmetic - 1:>+11.1%}")
    shared, arithmetic = result["measured"]["shared"], result["arithmetic_for_these_masks"]["shared"]
    print(f"  within 5 % of the arithmetic: {met(abs(shared / arithmetic - 1) <= 0.05)}", end="")
    print(f"; shared at most 1.40: {met(shared <= 1.40)}")


def met(condition: bool) -> str:
    return "met" if condition else "NOT met"


def engine_config(num_frames: int = 17) -> RunConfig:
    return build_config(
        {
            "model": {"path": "shapes-wan", "device": "cpu"},
            "sampling": {"num_inference_steps": 10, "max_sequence_length": 64, "num_frames": num_frames},
            "guidance": {"s2_scale": 0.0, "cfg_scale": 5.0},
        }
    )


def bench_engine(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step of CFG: this engine and diffusers' pipeline, run after run in turns, same weights and seed."""
    config = engine_config()
    sampling = config.sampling
    engine = Engine(config, progress="none")
    pipeline = WanPipeline.from_pretrained(engine.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> torch.Tensor:
        return engine.sample([PROMPT], [0])

    def theirs() -> torch.Tensor:
        return pipeline(
            PROMPT,
            height=sampling.height,
            width=sampling.width,
            num_frames=sampling.num_frames,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=config.guidance.cfg_scale,
            generator=torch.Generator().manual_seed(0),
            max_sequence_length=sampling.max_sequence_length,
            output_type="latent",
        ).frames

    equal = torch.equal(ours(), theirs())
    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for _ in range(max(3, args.repeats * 2)):
        times["ours"].append(seconds(ours) / sampling.num_inference_steps)
        times["diffusers"].append(seconds(theirs) / sampling.num_inference_steps)
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {"seconds_per_step": medians, "ratio": medians["ours"] / medians["diffusers"], "bitwise_equal": equal}


def print_engine(result: dict[str, Any]) -> None:
    print("\nCFG on shapes-wan, seconds a step, this engine against diffusers' WanPipeline")
    ours, theirs = result["seconds_per_step"]["ours"], result["seconds_per_step"]["diffusers"]
    print(f"  {ours * 1e3:.1f} ms / {theirs * 1e3:.1f} ms = {result['ratio']:.3f}", end="")
    print(f"  (at most 1.02: {met(result['ratio'] <= 1.02)}; latents bitwise equal: {result['bitwise_equal']})")


def decode_peak(num_frames: int) -> float:
    """MiB above the level before decoding, for this process; `/proc` has the high-water mark and can reset it."""
    from s2video.media.video import VideoSpec, write_video

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

    config = engine_config(num_frames)
    vae = load_vae(find_checkpoint(config.model.path), torch.float32, CPU)
    # half the side of a 480p picture: the frames, not the libraries, are what could fill memory
    latents = torch.randn(1, 16, (num_frames - 1) // 4 + 1, 30, 52)
    with tempfile.TemporaryDirectory() as folder:
        for _ in decode_frames(vae, latents[:, :, :2]):  # libraries and thread pools set up before the baseline
            pass
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        write_video(decode_frames(vae, latents), Path(folder) / "out.mp4", VideoSpec(config.output.fps), metadata={})
    return status("VmHWM") - before


def bench_decode() -> dict[str, Any]:
    """Each length in a process of its own, so that one's leftovers do not hide the other's needs."""
    peaks = {}
    for num_frames in (17, 161):
        command = [sys.executable, __file__, "--decode-peak", str(num_frames)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | GIVE_BACK)
        peaks[str(num_frames)] = float(done.stdout)
    return {"peak_mib": peaks, "ratio": peaks["161"] / peaks["17"]}


def print_decode(result: dict[str, Any]) -> None:
    print("\nDecoding to MP4, 416x240, peak memory above the level before")
    short, long = result["peak_mib"].values()
    print(f"  17 frames {short:.0f} MiB, 161 frames {long:.0f} MiB, ratio {result['ratio']:.3f}", end="")
    print(f"  (equal within 10 %: {met(abs(result['ratio'] - 1) <= 0.1)})")


def bench_traffic() -> list[dict[str, Any]]:
    """Two gloo ranks in a torchrun of their own, which print the figures themselves."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "traffic.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(Path(__file__).with_name("traffic.py")), "--json", str(counts)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        result: list[dict[str, Any]] = json.loads(counts.read_text())
    return result


FIGURES = ["step", "engine", "decode", "traffic"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=FIGURES)
    parser.add_argument("--masks", type=int, default=10, help="masks drawn for the step figures")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each; the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write everything there")
    parser.add_argument("--decode-peak", type=int, metavar="FRAMES", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.decode_peak:
        print(decode_peak(args.decode_peak))
        return

    report: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "threads": args.threads}
    report |= {"versions": versions(), "date": time.strftime("%Y-%m-%d")}
    print(f"{report['machine']}, {args.threads} threads, {json.dumps(report['versions'])}")
    if "step" in args.only:
        shapes = load_transformer(find_checkpoint("shapes-wan"), torch.float32, CPU)
        report["step"] = [
            bench_step("shapes-wan", shapes, (5, 8, 8), 64, args),
            bench_step("Wan 1.3B scaled down", scaled_wan(), (5, 26, 32), 64, args),
        ]
        for result in report["step"]:
            print_step(result)
    if "engine" in args.only:
        report["engine"] = bench_engine(args)
        print_engine(report["engine"])
    if "decode" in args.only:
        report["decode"] = bench_decode()
        print_decode(report["decode"])
        report["decode_ranks"] = bench_ranks(2, args.repeats)
        print_ranks(report["decode_ranks"])
    if "traffic" in args.only:
        sys.stdout.flush()  # what has been printed stands before what the ranks print
        report["traffic"] = bench_traffic()
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    main()

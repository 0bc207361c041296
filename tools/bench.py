"""What S²-Guidance costs here: one command, one table, every ratio from one run.

    python tools/bench.py [--sections step flops …] [--quick] [--json FILE.jsonl]
    python tools/bench.py --device cuda --json FILE.jsonl [--minutes 6]
    python tools/bench.py --show FILE.jsonl …

Ways that are compared take turns. Each turn gives one ratio, and the table has their median and quartiles. Run it on an
idle machine. Nothing is asserted. The table is the one of docs/evidence/cost.md. The result file, rewritten after every
section, has every number behind it (see json_lines.py). `--show` prints the table of such files and runs nothing. The
names of a GPU's sections begin with `gpu`; they are ordered by the value of their answers. With `--minutes`, no section
begins after that time, and the table says which were not run. A section that fails on a GPU does not stop the others.
Without a GPU, `tools/fake_cuda_run.py --bench` runs them on a pretended one, to find what would stop them.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benches import decoding_cost, gpu, growth, many_videos, overhead, step, two_ranks, weight_fetching, whole_runs
from benches.report_file import read_report, write_report
from benches.rows import Section, table
from benches.workloads import Options
from json_lines import lines_path

from s2video.errors import InputError
from s2video.records.sidecar import versions


class Entry(NamedTuple):
    title: str  # in the table, where it was not run
    run: Callable[[Options], Section]


SECTIONS = {
    "step": Entry("S²/CFG, seconds of a step", step.by_the_clock),
    "run": Entry("S²/CFG, seconds of a run", whole_runs.runs),
    "reuse": Entry("S² with reuse / CFG, seconds of a run", whole_runs.with_reuse),
    "flops": Entry("S²/CFG, FLOPs of a step and of a run", step.in_flops),
    "memory": Entry("S²/CFG, peak memory of a step", step.in_memory),
    "engine": Entry("CFG here / diffusers' `WanPipeline`", whole_runs.against_diffusers),
    "overhead": Entry("Outside of blocks / a step", overhead.bench),
    "weights": Entry("Streamed weights, pass by pass / lockstep; memory while loading", weight_fetching.bench),
    "ranks": Entry("One rank / 2 ranks, seconds of a step; the merged suffix", two_ranks.meshes),
    "wide": Entry("One rank / 2 ranks, wider blocks, seconds of a step", two_ranks.wide),
    "traffic": Entry("Sent by 2 ranks / the least possible", two_ranks.traffic),
    "decode": Entry("Decoding: long / short videos, peak memory; one rank / 2 ranks, seconds", decoding_cost.bench),
    "batch": Entry("Many videos: a loop, separate processes / one batch, seconds", many_videos.bench),
    "gpu-selftest": Entry("GPU: self-test with the kernels of production", gpu.self_test),
    "growth": Entry("Many / few finished jobs, and long / short prompts, seconds", growth.bench),
    "gpu-wan": Entry("GPU: Wan 1.3B, 832x480x81, S²/CFG, against diffusers, peak memory", gpu.wan_small),
    "gpu-backends": Entry("GPU: attention backends", gpu.backends),
    "gpu-decode": Entry("GPU: decoding streamed / whole, seconds and peak memory", gpu.decoding),
    "gpu-weights": Entry("GPU: streamed weights, pass by pass / lockstep", gpu.weights),
    "gpu-memory": Entry("GPU: peak memory of a step / the plan", gpu.memory),
    "gpu-compile": Entry("GPU: compiled blocks", gpu.compiled),
    "gpu-reuse": Entry("GPU: S² with reuse / CFG, seconds of a run", gpu.reuse),
    "gpu-wan-14b": Entry("GPU: Wan 14B, 1280x720x81, S²/CFG, against diffusers, peak memory", gpu.wan_large),
    "gpu-hunyuan": Entry("GPU: HunyuanVideo, 1280x720x129, S²/cond", gpu.hunyuan),
    "gpu-dtype": Entry("GPU: bfloat16 against float32", gpu.dtypes),
}


def gpu_name() -> str | None:
    """The name of the GPU; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def show(files: Sequence[Path]) -> str:
    """The table of reports; where several have a section, the last one's counts."""
    sections: dict[str, Any] = {}
    for file in files:
        sections |= read_report(file)["sections"]
    return table(sections, {name: entry.title for name, entry in SECTIONS.items()})


def head(args: argparse.Namespace) -> dict[str, Any]:
    """Where and with what the numbers were made."""
    on_gpu = args.device == "cuda"
    return {
        "command": shlex.join(["python", "tools/bench.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "device": gpu_name() if on_gpu else "cpu",
        "cpus": os.cpu_count(),
        "threads": args.threads,
        "quick": args.quick,
        "versions": versions(),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--masks", type=int, default=10, help="drawn for the figures of a step")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of what runs on one rank")
    parser.add_argument("--quick", action="store_true", help="sizes that take seconds and say nothing about cost")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no section after N minutes")
    parser.add_argument("--json", type=lines_path, metavar="FILE.jsonl", help="also write every number there")
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE", help="print the table of such files instead")
    args = parser.parse_args(argv)
    on_gpu = args.device == "cuda"
    if args.sections is None:
        args.sections = [name for name in SECTIONS if name.startswith("gpu") == on_gpu]
    for name in args.sections:
        if name.startswith("gpu") != on_gpu and not args.quick:
            parser.error(f"section {name} runs with --device {'cpu' if on_gpu else 'cuda'}, got {args.device}")
    if on_gpu and not args.show and gpu_name() is None:
        parser.error("--device cuda: torch finds no GPU here")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.show:
        try:
            print(show(args.show))
        except InputError as error:
            print(f"bench: error: {error}", file=sys.stderr)
            return 2
        return 0
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes that sections start
    device = "cuda:0" if args.device == "cuda" else args.device
    options = Options(masks=args.masks, repeats=args.repeats, quick=args.quick, device=device)
    report: dict[str, Any] = {**head(args), "sections": {}}
    print(json.dumps(report), file=sys.stderr)
    began, failed = time.monotonic(), False
    for name in args.sections:
        start = time.monotonic()
        if args.minutes is not None and start - began > args.minutes * 60:
            print(f"{name}: not run, {args.minutes:g} minutes are over", file=sys.stderr)
            continue
        try:
            report["sections"][name] = SECTIONS[name].run(options).as_json()
        except Exception as error:  # out of memory, a kernel that this GPU lacks, NaN: the other sections still count
            if args.device == "cpu":
                raise
            reason = (str(error).splitlines() or [""])[0]
            print(f"{name}: failed: {type(error).__name__}: {reason}", file=sys.stderr)
            failed = True
            continue
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        if args.json:
            write_report(args.json, report)
    print(table(report["sections"], {name: SECTIONS[name].title for name in args.sections}))
    if args.quick:
        print("\n--quick: of miniature models, whatever a line calls them; these ratios say nothing about cost")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What it costs to bring weights: one fetch of a block a step against one a pass, and the memory that loading takes."""

import statistics
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benches.rows import Row, Section, counted, measured
from benches.step import peak_bytes
from benches.workloads import CPU, OneStep, Options, apart, random_model, scaled_wan, take_turns, wan_step
from s2video.config.sections import ParallelConfig
from s2video.models.checkpoint import Checkpoint
from s2video.models.parts import place_transformer
from s2video.models.registry import FAMILIES
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Mesh
from s2video.parallel.traffic import count_traffic
from s2video.parallel.weights import BlockWeights
from s2video.sampling.forward import Lockstep
from s2video.system.files import write_json

BLOCKS = ("blocks",)
DROPPED = (2, 4)
# where bringing 400 MiB of weights takes a good part of a step
LARGER = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "ffn_dim": 2048,
    "num_layers": 24,
    "text_dim": 256,
    "freq_dim": 256,
}


def save_transformer(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> int:
    """A random transformer, as a checkpoint's folder has it; returns its bytes."""
    model = random_model(config, dtype=dtype)
    model.save_pretrained(folder / "transformer")
    family = next(family for family in FAMILIES if family.classes["transformer"] == config["_class_name"])
    components = {name: ["", kind] for name, kind in family.classes.items() if name not in family.optional}
    write_json(folder / "model_index.json", {"_class_name": family.pipeline, **components})
    return sum(p.nbytes for p in model.parameters())


def in_lockstep(step: OneStep, weights: BlockWeights) -> list[Tensor]:
    """Cond, uncond and sub, which computes its prefix again here, as it must where passes follow one another."""
    got = step([DROPPED], lockstep=Lockstep(weights, share_prefix=False))
    return [got.cond, cast(Tensor, got.uncond), *got.subs]


@torch.no_grad()
def pass_by_pass(step: OneStep, weights: BlockWeights) -> list[Tensor]:
    """The same predictions one after the other, each fetching every block."""
    model = step.model
    plan = AttentionPlan.even(Mesh(step.device).sequence, model.num_tokens(step.latents))
    outputs = []
    for conditioning, dropped in ((step.cond, ()), (step.uncond, ()), (step.cond, DROPPED)):
        context = model.prepare(step.latents, step.timestep, conditioning, plan)
        state = model.embed(step.latents, context)
        for index in range(model.num_blocks):
            with weights.block(index):
                if index not in dropped:
                    state = model.run_block(index, state, context)
        outputs.append(model.project(state, context))
    return outputs


def streamed(
    folder: Path,
    latent_shape: tuple[int, int, int],
    repeats: int,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Section:
    """Blocks from CPU memory (on the CPU: copied), all branches in lockstep against one pass after another."""
    parallel, mesh = ParallelConfig(weights="streamed"), Mesh(device)
    transformer, weights = place_transformer(Checkpoint(folder), dtype, mesh, parallel)
    step = wan_step(transformer, latent_shape, num_text=8)
    ways = {"lockstep": lambda: in_lockstep(step, weights), "pass by pass": lambda: pass_by_pass(step, weights)}
    outputs, fetched = {}, {}
    for name, run in ways.items():
        with count_traffic() as traffic:
            outputs[name] = run()
        fetched[name] = traffic.sent["weights"]
    peaks = {name: peak_bytes(run, device) for name, run in ways.items()}
    equal = all(torch.equal(a, b) for a, b in zip(*outputs.values(), strict=True))
    times = take_turns(ways, repeats, device)
    what = f"Pass by pass / lockstep, cond, uncond and sub, {step.model.num_blocks} streamed blocks"
    rows = [
        counted(f"{what}: bytes of weights fetched", fetched["pass by pass"] / fetched["lockstep"], "3 passes"),
        measured(
            f"{what}: seconds",
            times["pass by pass"],
            times["lockstep"],
            f"above 1; predictions bitwise {'equal' if equal else 'DIFFERENT'}",
        ),
        counted(f"{what}: peak memory", peaks["pass by pass"] / peaks["lockstep"], "below 1: fewer states at a time"),
    ]
    return Section(rows, {"fetched_bytes": fetched, "peak_bytes": peaks, "seconds": times, "bitwise_equal": equal})


def memory_status(field: str) -> int:
    """Bytes, of this process; Linux keeps the high-water mark (VmHWM), and lets it be reset."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def load_peak(mesh: Mesh, folder: str, kind: Any) -> int:
    """Bytes above the level before, while this rank loads its part."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = memory_status("VmRSS")
    kept = place_transformer(Checkpoint(Path(folder)), torch.float32, mesh, ParallelConfig(weights=kind))
    peak = memory_status("VmHWM") - before
    del kept
    return peak


def loading(folder: Path, size: int, *, quick: bool) -> Section:
    """Each rank's peak beside weights / ranks. Whole weights are not among them: those a CPU maps from the file."""
    rows: list[Row] = []
    raw: dict[str, Any] = {"size": size}
    for kind, num_ranks in [("streamed", 1)] if quick else [("streamed", 1), ("fsdp", 2), ("fsdp", 3)]:
        peaks = apart("weight_fetching.load_peak", num_ranks=num_ranks, folder=str(folder), kind=kind)
        what = f"Loading {size / 2**20:.0f} MiB, {kind}, {num_ranks} rank{'s'[: num_ranks - 1]}"
        shares = [peak * num_ranks / size for peak in peaks]
        held = "1, and what belongs to no block; the spread is over ranks"
        rows.append(Row(f"{what}: peak memory / share", statistics.median(shares), (min(shares), max(shares)), held))
        raw[f"{kind} {num_ranks}"] = peaks
    return Section(rows, raw)


def bench(options: Options) -> Section:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = save_transformer(folder, scaled_wan(quick=True) if options.quick else LARGER)
        parts = [
            streamed(folder, (1, 8, 8), options.repeats),
            loading(folder, size, quick=options.quick),
        ]
    return Section([row for part in parts for row in part.rows], {"streamed": parts[0].raw, "loading": parts[1].raw})

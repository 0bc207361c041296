"""Two ranks of one thread each against one such rank: a step's seconds by mesh, and what the ranks send."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benches.rows import Row, Section, counted, measured
from benches.workloads import OneStep, Options, apart, draw_masks, s2_over_cfg, scaled_step, seconds
from s2video.config.sections import ParallelConfig
from s2video.geometry import split_evenly
from s2video.parallel.mesh import Mesh, build_mesh
from s2video.parallel.traffic import count_traffic, ring_minimum, ulysses_minimum

WINDOW = 0.8  # of the steps
LAYOUTS = {
    "ulysses 2": ParallelConfig(ulysses=2),
    "ring 2": ParallelConfig(ring=2),
    "branch 2": ParallelConfig(branch=2),
}
FLOAT = 4  # bytes


def time_meshes(world: Mesh, quick: bool, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of CFG and S² steps by mesh, in turns; "one rank" is rank 0, the other being asleep meanwhile."""
    torch.set_num_threads(1)
    step = scaled_step(quick=quick)
    masks = {"cfg": [], "s2": draw_masks(1, step.model.num_blocks)}
    meshes = {"one rank": Mesh(world.device)}
    meshes |= {name: build_mesh(parallel, world.device) for name, parallel in LAYOUTS.items()}
    times: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in masks} for name in meshes}
    for repeat in range(repeats + 1):
        for name, mesh in meshes.items():
            for kind, drawn in masks.items():
                dist.barrier()
                if name != "one rank" or world.is_main:
                    taken = seconds(partial(step, drawn, mesh=mesh))
                    if repeat > 0:  # the first one is for warming up
                        times[name][kind].append(taken)
    return times


def meshes(options: Options) -> Section:
    times = apart("two_ranks.time_meshes", num_ranks=2, quick=options.quick, repeats=options.repeats)[0]
    mean = {
        name: [(1 - WINDOW) * cfg + WINDOW * s2 for cfg, s2 in zip(kinds["cfg"], kinds["s2"], strict=True)]
        for name, kinds in times.items()
    }
    rows = [
        measured(
            f"One rank / 2 ranks, {name}, seconds of a mean S² step, Wan 1.3B scaled down",
            mean["one rank"],
            mean[name],
            "2",
        )
        for name in LAYOUTS
    ]
    num_blocks = 6 if options.quick else 30
    masks = draw_masks(1, num_blocks)
    merged = s2_over_cfg(num_blocks, masks)
    rows.append(
        measured(
            "S²/CFG, seconds of a step in the window, branch 2, the sub suffix merged on both ranks",
            times["branch 2"]["s2"],
            times["branch 2"]["cfg"],
            f"{merged:.3f} for the mask drawn; {2 * merged - 1:.3f} if the sub pass stayed on cond's rank",
        )
    )
    return Section(rows, {"masks": masks, "seconds": times})


def count_sent(world: Mesh, quick: bool) -> list[dict[str, Any]]:
    """For Ulysses and for the ring: what this rank sends in one S² step, beside the least possible, in bytes."""
    torch.set_num_threads(1)
    step = scaled_step(quick=quick)
    return [
        {"layout": name} | count_layout(build_mesh(LAYOUTS[name], world.device), step)
        for name in ("ulysses 2", "ring 2")
    ]


def count_layout(mesh: Mesh, step: OneStep) -> dict[str, Any]:
    model, config, sequence = step.model, step.model.transformer.config, mesh.sequence
    (mask,) = draw_masks(1, model.num_blocks)
    with count_traffic() as traffic:
        step([mask], mesh=mesh)
    layers = 3 * model.num_blocks - mask[0] - len(mask)

    shards = [shard.length for shard in split_evenly(model.num_tokens(step.latents), sequence.whole.size)]
    heads = [shard.length for shard in split_evenly(config.num_attention_heads, sequence.ulysses.size)]
    group = slice(sequence.ring.rank * len(heads), (sequence.ring.rank + 1) * len(heads))
    blocks = [sum(shards[i : i + len(heads)]) for i in range(0, len(shards), len(heads))]
    width = heads[sequence.ulysses.rank] * config.attention_head_dim
    least = ulysses_minimum(shards[group], heads, config.attention_head_dim)[sequence.ulysses.rank]
    least += ring_minimum(blocks, width)[sequence.ring.rank]
    gathered = traffic.sent["all_gather"]
    return {
        "layers": layers,
        "calls": {kind: number for kind, number in traffic.calls.items() if kind != "all_gather"},
        "sent": traffic.total - gathered,
        "minimum": least * layers * FLOAT,
        "gathered": gathered,
    }


def traffic(options: Options) -> Section:
    by_rank = apart("two_ranks.count_sent", num_ranks=2, quick=options.quick)
    rows: list[Row] = []
    for counts in zip(*by_rank, strict=True):
        most = max(counts, key=lambda count: count["sent"])
        calls = ", ".join(f"{number} {kind}" for kind, number in most["calls"].items())
        rows.append(
            counted(
                f"Sent in attention in an S² step / the least possible, 2 ranks, {most['layout']}",
                most["sent"] / most["minimum"],
                f"1 ({most['sent'] / 2**20:.2f} MiB in {most['layers']} layers: {calls})",
            )
        )
    return Section(rows, {"by_rank": by_rank})

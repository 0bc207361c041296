"""Two ranks of one thread each against one such rank: a step's seconds by mesh, where they go, and what the ranks send.

Two processes that share a machine also slow each other down without a word between them: they share memory and caches.
So the ceiling of two ranks is what two independent processes reach, measured in the same run, and not 2.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benches.phases import PHASES, phases
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
ONE, BOTH = "one rank", "each alone"  # each rank makes the whole step, with no other; and both do at once
GOAL = 0.95  # of the ceiling
FLOAT = 4  # bytes


def time_meshes(world: Mesh, quick: bool, repeats: int, **shape: int) -> dict[str, Any]:
    """Seconds of CFG and S² steps by mesh, in turns, and of one more S² step by phase.

    In "one rank" the other one is asleep meanwhile. In "each alone" both make a whole step of their own at once, and
    the clock stops when both are done.
    """
    torch.set_num_threads(1)
    step = scaled_step(quick=quick, **shape)
    masks = {"cfg": [], "s2": draw_masks(1, step.model.num_blocks)}
    meshes = {ONE: Mesh(world.device), BOTH: Mesh(world.device)}
    meshes |= {name: build_mesh(parallel, world.device) for name, parallel in LAYOUTS.items()}
    times: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in masks} for name in meshes}

    def run(name: str, drawn: Sequence[Sequence[int]]) -> None:
        if name != ONE or world.is_main:
            step(drawn, mesh=meshes[name])
        if name == BOTH:
            dist.barrier()

    for repeat in range(repeats + 1):
        for name in meshes:
            for kind, drawn in masks.items():
                dist.barrier()
                taken = seconds(partial(run, name, drawn))
                if repeat > 0 and (name != ONE or world.is_main):  # the first one is for warming up
                    times[name][kind].append(taken)
    found = {name: phases(partial(run, name, masks["s2"])) for name in meshes}
    return {"seconds": times, "phases": found}


def meshes(options: Options) -> Section:
    by_rank = apart("two_ranks.time_meshes", num_ranks=2, quick=options.quick, repeats=options.repeats)
    rows, times = _speed_ups(by_rank, "Wan 1.3B scaled down"), by_rank[0]["seconds"]
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
    return Section(rows, {"masks": masks, "seconds": times, "phases": [found["phases"] for found in by_rank]})


def wide(options: Options) -> Section:
    """The same with wider blocks, in which a token costs more to compute than to send, as in published models."""
    shape = {"dim": 64, "num_layers": 4}
    by_rank = apart("two_ranks.time_meshes", num_ranks=2, quick=options.quick, repeats=options.repeats, **shape)
    rows = _speed_ups(by_rank, "four blocks of half of Wan 1.3B's width")
    return Section(rows, {"seconds": by_rank[0]["seconds"], "phases": [found["phases"] for found in by_rank]})


def _speed_ups(by_rank: Sequence[Mapping[str, Any]], name: str) -> list[Row]:
    """How much faster two ranks are than one, and than half of what two independent processes do."""
    mean = {
        layout: [(1 - WINDOW) * cfg + WINDOW * s2 for cfg, s2 in zip(kinds["cfg"], kinds["s2"], strict=True)]
        for layout, kinds in by_rank[0]["seconds"].items()
    }
    twice, half = ([factor * taken for taken in mean[way]] for factor, way in ((2, ONE), (0.5, BOTH)))
    rows = [measured(f"Two independent processes / one, steps a second, {name}", twice, mean[BOTH], "2")]
    for layout in LAYOUTS:
        what = f"One rank / 2 ranks, {layout}, seconds of a mean S² step, {name}"
        rows.append(measured(what, mean[ONE], mean[layout], "2"))
        goal = f"at least {GOAL}; of an S² step's seconds, {_shares(by_rank, layout)}"
        rows.append(
            measured(f"The same for {layout}, of what two independent processes reach", half, mean[layout], goal)
        )
    return rows


def _shares(by_rank: Sequence[Mapping[str, Any]], name: str) -> str:
    """The mean of both ranks' phases, in percent of their sum."""
    mean = {phase: sum(found["phases"][name][phase] for found in by_rank) / len(by_rank) for phase in PHASES}
    total = sum(mean.values())
    return ", ".join(f"{100 * mean[phase] / total:.0f} % {phase}" for phase in PHASES)


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

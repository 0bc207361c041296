"""S² against CFG: one step in the window by the clock, in FLOPs, and in memory.

A sub pass is cond's up to its first dropped block, so what it costs depends on the masks drawn: each figure
stands beside the arithmetic for those masks, and beside its expectation over all masks.
"""

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benches.rows import Row, Section, counted, measured
from benches.workloads import (
    CPU,
    OneStep,
    Options,
    draw_masks,
    published,
    random_model,
    s2_over_cfg,
    scaled_step,
    scaled_wan,
    seconds,
    wan_step,
)
from s2video.guidance.masks import MaskSpec, step_masks
from s2video.models.checkpoint import Checkpoint, find_checkpoint
from s2video.models.loading import load_transformer
from s2video.sampling.forward import Lockstep

# name -> checkpoint; latent frames, rows, columns
PUBLISHED = {
    "Wan 1.3B, 832x480x81": ("Wan-AI--Wan2.1-T2V-1.3B-Diffusers", (21, 60, 104)),
    "Wan 14B, 1280x720x81": ("Wan-AI--Wan2.1-T2V-14B-Diffusers", (21, 90, 160)),
}
NUM_STEPS = 50
PAPER_FLOPS = 1.41  # Table 5


def held(num_blocks: int, masks: list[tuple[int, ...]], *, share_prefix: bool = True) -> str:
    drawn = s2_over_cfg(num_blocks, masks, share_prefix=share_prefix)
    return f"{drawn:.3f} for the masks drawn, {s2_over_cfg(num_blocks, share_prefix=share_prefix):.3f} expected"


def by_the_clock(options: Options) -> Section:
    steps = {"Wan 1.3B scaled down": scaled_step(quick=options.quick)}
    if not options.quick:
        shapes = load_transformer(Checkpoint(find_checkpoint("shapes-wan")), torch.float32, CPU)
        steps["shapes-wan"] = wan_step(shapes, (5, 8, 8))
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, step in steps.items():
        masks = draw_masks(options.masks, step.model.num_blocks)
        raw[name] = {"masks": masks, "seconds": time_step(step, masks, options.repeats)}
        rows += step_rows(name, step.model.num_blocks, masks, raw[name]["seconds"])
    return Section(rows, raw)


def time_step(
    step: OneStep, masks: list[tuple[int, ...]], repeats: int, more: Mapping[str, Callable[[Any], Any]] | None = None
) -> dict[str, list[list[float]]]:
    """Seconds by way, repeat and mask, the ways taking turns at every mask; `more` are other ways."""
    ways: dict[str, Callable[[tuple[int, ...]], Any]] = {
        "cfg": lambda mask: step(),
        "shared": lambda mask: step([mask]),
        "recomputed": lambda mask: step([mask], lockstep=Lockstep(share_prefix=False)),
        **(more or {}),
    }
    for run in ways.values():
        run(masks[0])
    times: dict[str, list[list[float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            times[way].append([])
        for mask in masks:
            for way, run in ways.items():
                times[way][-1].append(seconds(partial(run, mask), step.device))
    return times


def step_rows(
    name: str, num_blocks: int, masks: list[tuple[int, ...]], times: dict[str, list[list[float]]]
) -> list[Row]:
    """A repeat's ratio is that of its sums over the masks, which is what the arithmetic's mean over them predicts."""
    sums = {way: [sum(repeat) for repeat in repeats] for way, repeats in times.items()}
    what = f"S²/CFG, seconds of a step in the window, {name} ({num_blocks} blocks, {len(masks[0])} dropped)"
    return [
        measured(f"{what}, prefix shared", sums["shared"], sums["cfg"], held(num_blocks, masks)),
        measured(
            f"{what}, prefix recomputed",
            sums["recomputed"],
            sums["cfg"],
            held(num_blocks, masks, share_prefix=False),
        ),
    ]


def in_flops(options: Options) -> Section:
    """At the published sizes, on the meta device: torch counts what would be computed."""
    if options.quick:
        cases, num_steps = {"tiny Wan": (scaled_wan(quick=True), (1, 4, 6))}, 10
    else:
        cases = {name: (published(checkpoint), shape) for name, (checkpoint, shape) in PUBLISHED.items()}
        num_steps = NUM_STEPS
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, (config, latent_shape) in cases.items():
        with torch.device("meta"):  # blocks make tensors of their own
            step = wan_step(random_model(config, torch.device("meta")), latent_shape, num_text=512)
            blocks = step.model.num_blocks
            by_step = [
                step_masks(MaskSpec(), num_blocks=blocks, seed=0, step=i, num_steps=num_steps) for i in range(num_steps)
            ]
            flops = count_flops(step, by_step)
        cfg = next(count for count, masks in zip(flops, by_step, strict=True) if not masks)
        inside = [masks[0] for masks in by_step if masks]
        s2 = sum(count for count, masks in zip(flops, by_step, strict=True) if masks) / len(inside)
        share = len(inside) / num_steps
        expected = 1 + share * (s2_over_cfg(blocks) - 1)
        drawn = 1 + share * (s2_over_cfg(blocks, inside) - 1)
        rows += [
            counted(f"S²/CFG, FLOPs of a step in the window, {name}", s2 / cfg, held(blocks, inside)),
            counted(
                f"S²/CFG, FLOPs of a run of {num_steps} steps, {name}",
                sum(flops) / (cfg * num_steps),
                f"{drawn:.3f} for the masks drawn, {expected:.3f} expected; the paper's {PAPER_FLOPS}",
            ),
        ]
        raw[name] = {"cfg": cfg, "s2_by_step": flops, "masks": by_step}
    return Section(rows, raw)


def count_flops(step: OneStep, by_step: list[tuple[tuple[int, ...], ...]]) -> list[int]:
    """Of each step. Wan's blocks are alike, so one count serves all masks of which as many blocks are left to run."""
    known: dict[int, int] = {}
    counts = []
    for masks in by_step:
        left = sum(step.model.num_blocks - mask[0] - len(mask) for mask in masks) if masks else -1
        if left not in known:
            with FlopCounterMode(display=False) as counter:
                step(masks)
            known[left] = counter.get_total_flops()
        counts.append(known[left])
    return counts


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the `with` and still in use; `peak` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()  # views share one, and what comes in from outside is not ours
                if id(storage) not in given and self._seen.get(id(storage)) is not storage:
                    self._seen[id(storage)] = storage
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, count: int) -> None:
        self.live -= count


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most that is in use at once while it runs: on a GPU in all, elsewhere of tensors made meanwhile."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    with LiveBytes() as memory:
        run()
    return memory.peak


def in_memory(options: Options) -> Section:
    """What a step has in use at once beside the weights, counted tensor by tensor."""
    step = scaled_step(quick=options.quick)
    weights = sum(p.nbytes for p in step.model.transformer.parameters())
    (mask,) = draw_masks(1, step.model.num_blocks)
    peaks = {
        "cfg": peak_bytes(lambda: step(), step.device),
        "s2": peak_bytes(lambda: step([mask]), step.device),
    }
    state = step.model.num_tokens(step.latents) * step.model.transformer.proj_out.in_features * 4
    row = counted(
        "S²/CFG, peak memory of a step, weights and activations, Wan 1.3B scaled down",
        (weights + peaks["s2"]) / (weights + peaks["cfg"]),
        f"{(weights + peaks['cfg'] + state) / (weights + peaks['cfg']):.3f}: one more state; the paper: unchanged",
    )
    return Section([row], {"weights": weights, "peak_beside_weights": peaks, "state": state, "mask": mask})

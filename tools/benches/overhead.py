"""What a step spends outside of its blocks, part by part: the embedded model, and Wan 1.3B scaled down."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

from diffusers import UniPCMultistepScheduler

from benches.rows import Row, Section
from benches.whole_runs import PROMPT, Guided, config
from benches.workloads import Options, scaled_step
from s2video.config.guidance import GuidanceConfig
from s2video.engine.engine import Engine
from s2video.models.wan.blocks import WanBlockModel
from s2video.sampling.denoiser import Denoiser

BLOCKS = "blocks"
PARTS: Mapping[str, tuple[type, str]] = {  # none calls another
    BLOCKS: (WanBlockModel, "run_block"),
    "time, text and positions": (WanBlockModel, "prepare"),
    "first layer": (WanBlockModel, "embed"),
    "last layer": (WanBlockModel, "project"),
    "guidance": (Denoiser, "guide"),
    "scheduler": (UniPCMultistepScheduler, "step"),
}


def seconds_by_part(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call inside each part; "rest" is what belongs to none of them."""
    found = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                found[part] += time.perf_counter() - began

        return call

    with ExitStack() as patches:
        for part, (owner, name) in PARTS.items():
            patches.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        began = time.perf_counter()
        run()
        total = time.perf_counter() - began
    return found | {"rest": total - sum(found.values())}


def bench(options: Options) -> Section:
    engine = Engine(config(options), progress="none")
    num_steps = 2 if options.quick else 10
    scaled = Guided(scaled_step(quick=options.quick), num_steps, GuidanceConfig())
    runs: dict[str, Callable[[], Any]] = {
        f"shapes-wan ({engine.num_blocks} blocks)": lambda: engine.sample([PROMPT], [0]),
        f"Wan 1.3B scaled down ({scaled.num_blocks} blocks), without a scheduler": scaled.run,
    }
    rows, raw = [], {}
    for name, run in runs.items():
        run()  # the first of all runs is slower
        raw[name] = [seconds_by_part(run) for _ in range(options.repeats)]
        rows.append(_row(name, raw[name]))
    return Section(rows, raw)


def _row(name: str, repeats: list[dict[str, float]]) -> Row:
    """The share of everything but the blocks, and each part's in the repeat with the middle share."""
    shares = sorted((1 - found[BLOCKS] / sum(found.values()), i) for i, found in enumerate(repeats))
    middle, index = shares[len(shares) // 2]
    found = repeats[index]
    parts = {part: 100 * taken / sum(found.values()) for part, taken in found.items() if part != BLOCKS}
    described = ", ".join(f"{part} {share:.1f} %" for part, share in sorted(parts.items(), key=lambda p: -p[1]))
    return Row(f"Outside of blocks / a step with S², {name}", middle, (shares[0][0], shares[-1][0]), f"0; {described}")

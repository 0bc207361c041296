"""`tools/bench.py --device cuda` on a pretended GPU: its sections do all that they would do, with numbers that mean
nothing, except the peaks of memory, which are those of tensors.

Four things are left out: values that the self-test compares, compilation, files of weights, and models of the published
depth.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bench
import torch
from benches import gpu, weight_fetching, workloads

from s2video.models import compiled as block_compiler
from s2video.models import parts
from s2video.models.registry import FAMILIES
from s2video.system.files import write_json

from .device import NAME, fake_gpu
from .published import NoFiles, empty, empty_component
from .watchdog import Watchdog

_DEPTH, _SCALED_DEPTH = 3, 5  # blocks of each list of a published transformer, and of one that is scaled down


def run_bench(arguments: Sequence[str]) -> tuple[int, Watchdog]:
    """Run `tools/bench.py --device cuda` with more arguments; return its exit code and what the watchdog saw."""
    with _bench_patched(), fake_gpu() as watchdog:
        return bench.main(["--device", "cuda", *arguments]), watchdog


@contextmanager
def _bench_patched() -> Iterator[None]:
    published, scaled_wan = gpu.published, gpu.scaled_wan

    def shallow(name: str) -> dict[str, Any]:
        config = published(name)
        return config | {key: _DEPTH for key in ("num_layers", "num_single_layers") if key in config}

    with ExitStack() as stack:
        for owner, attribute, double in (
            (bench, "gpu_name", lambda: NAME),
            (gpu, "published", shallow),
            (gpu, "scaled_wan", lambda **size: scaled_wan(**size) | {"num_layers": _SCALED_DEPTH}),
            (gpu, "save_transformer", _save_names),
            (weight_fetching, "save_transformer", _save_names),
            (workloads, "init_empty_weights", lambda include_buffers: empty()),
            (parts, "empty_component", empty_component),
            (parts, "check_component", lambda *_: NoFiles()),
            (block_compiler, "compile_blocks", lambda blocks: None),
        ):
            stack.enter_context(patch.object(owner, attribute, double))
        yield


def _save_names(folder: Path, config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> int:
    """Write the JSON files of a checkpoint with one transformer, whose weights `NoFiles` gives."""
    (folder / "transformer").mkdir()
    write_json(folder / "transformer" / "config.json", config)
    family = next(family for family in FAMILIES if family.classes["transformer"] == config["_class_name"])
    components = {name: ["", kind] for name, kind in family.classes.items() if name not in family.optional}
    write_json(folder / "model_index.json", {"_class_name": family.pipeline, **components})
    return 0


def faults_of(watchdog: Watchdog) -> dict[str, int]:
    """Return what would go wrong on a GPU.

    Without one place: diffusers' own pipeline hands its scheduler predictions in the transformer's dtype.
    """
    return {fault: count for fault, count in watchdog.faults.items() if " at schedulers/" not in fault}

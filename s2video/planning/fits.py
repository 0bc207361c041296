"""Which settings make a run fit into the memory of a card, by the numbers of `memory`. Nothing is measured.

The settings tried keep the latents up to rounding; bfloat16 in the VAE rounds the frames too. Those that cost least are
first. Fewer frames or pixels, which change the video, are not tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from ..config.run import RunConfig
from ..errors import InputError
from ..models.checkpoint import Checkpoint
from .memory import Phase, memory_of
from .plan import find_json, legal_meshes, step_of
from .step import GIGA, Degrees

SIZES_GB = (24.0, 48.0, 80.0)  # of common cards
_RESERVED_GB = 1.5  # used by the runtime itself, as in `cards`

# (setting, value, cost): the costs only order the ways; a sum of cheaper settings comes before a dearer one.
_WAYS: tuple[tuple[tuple[str, Any, int], ...], ...] = (
    (("model.offload_text_encoder", True, 1), ("model.stream_text_encoder", True, 2)),
    (("model.offload_experts", True, 3),),
    (("parallel.decode", "auto", 1),),
    (("model.vae_dtype", "bfloat16", 8),),
    (("parallel.weights", "fsdp", 5), ("parallel.weights", "streamed", 7)),
)


class Way(NamedTuple):
    """Settings that differ from the config's, with the mesh that then needs least memory of one rank, and its peak."""

    settings: Mapping[str, Any]
    degrees: Degrees
    memory_gb: float
    phase: Phase

    def __str__(self) -> str:
        values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.settings.items()}
        return " ".join(f"{key}={value}" for key, value in values.items()) or "as configured"


def ways_to_run(
    config: RunConfig, world_size: int, checkpoint: Checkpoint, is_published: bool, reserved_gb: float = _RESERVED_GB
) -> list[Way]:
    """Return the config itself and all its other ways to place weights, cheapest first.

    Raises:
        InputError: the checkpoint cannot serve the config itself.
    """
    ways = []
    for settings in _combinations():
        changed = {key: value for key, value in settings.items() if _value(config, key) != value}
        if len(changed) < len(settings):
            continue  # the config has one of them already
        try:
            # other weights also allow other meshes; the config's own degrees need not fit them
            other = config.patched(changed) if changed else config
            step, _ = step_of(other, world_size, checkpoint, is_published)
        except InputError:
            if not changed:
                raise
            continue
        peaks = {degrees: memory_of(degrees, step) for degrees in legal_meshes(other, world_size)}
        degrees = min(peaks, key=lambda d: peaks[d].peak)
        ways.append(Way(changed, degrees, reserved_gb + peaks[degrees].peak / GIGA, peaks[degrees].phase))
    return ways


def fitting(ways: list[Way], memory_gb: float) -> Way | None:
    """Return the first of these ways that fits into `memory_gb`; None if none does."""
    return next((way for way in ways if way.memory_gb <= memory_gb), None)


def advice(config: RunConfig, world_size: int, memory_gb: float, command: str = "") -> str:
    """Return the end of an out-of-memory message: settings that would fit by the plan; empty if they are not known.

    A way that the plan already thought to fit is not proposed again: its prediction was wrong.

    Args:
        command: the command that takes --set, if it is not the one that runs.
    """
    try:
        ways = ways_to_run(config, world_size, *find_json(config))
    except InputError:
        return ""
    way = fitting([way for way in ways if way.settings], memory_gb)
    if way is None:
        least = min(ways, key=lambda way: way.memory_gb)
        return (
            f"; by the plan, no setting fits into {memory_gb:.0f} GB on {world_size} rank(s): {least} needs most "
            f"{least.memory_gb:.0f} GB while {least.phase}"
        )
    options = " ".join([*command.split(), *(f"--set {part}" for part in str(way).split())])
    return f"; by the plan, it fits into {memory_gb:.0f} GB with {options} ({way.memory_gb:.0f} GB while {way.phase})"


def advice_for(config: RunConfig, world_size: int, device: Any, command: str = "") -> str:
    """Return `advice` for the memory of a torch device; empty for a CPU."""
    if device.type != "cuda":
        return ""
    import torch

    return advice(config, world_size, torch.cuda.get_device_properties(device).total_memory / GIGA, command)


def _combinations() -> Iterator[dict[str, Any]]:
    """Yield all combinations of `_WAYS`, cheapest first, beginning with none."""
    choices = [[None, *group] for group in _WAYS]
    combined = [[choice for choice in way if choice is not None] for way in product(*choices)]
    for way in sorted(combined, key=lambda way: sum(cost for _, _, cost in way)):
        yield {key: value for key, value, _ in way}


def _value(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)

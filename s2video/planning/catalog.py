"""`s2video models`: the configs that can be named, and what their models take and need."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..config.named import config_names, named_config
from ..errors import InputError
from ..models.checkpoint import EMBEDDED
from .cards import CARDS
from .plan import find_json, plan_for
from .step import GIGA


class Entry(NamedTuple):
    """One config.

    Attributes:
        inputs: "text", "image" or "image?" (optional), "last image" or "last image?", "control video?", "mask?",
            "references?".
        size: "WIDTHxHEIGHTxFRAMES", pixels and frames.
        num_blocks, memory_gb: transformer blocks, and predicted memory of one rank alone, in GB, as configured; None,
            with no inputs, if the model's values are not at hand.
    """

    name: str
    model: str
    inputs: tuple[str, ...]
    size: str
    num_steps: int
    num_blocks: int | None = None
    memory_gb: float | None = None


def list_models() -> list[Entry]:
    """Return every config of the package, by name; memory is predicted for one rank."""
    return [_entry(name) for name in config_names()]


def _shown_name(name: str, model: str) -> str:
    """The model's own name for an embedded one, as documents use it; other names are those of configs."""
    return model if model in EMBEDDED else name


def _entry(name: str) -> Entry:
    config = named_config(name)
    sampling = config.sampling
    size = f"{sampling.width}x{sampling.height}x{sampling.num_frames}"
    try:
        checkpoint, is_published = find_json(config)
    except InputError:
        return Entry(_shown_name(name, config.model.path), config.model.path, (), size, sampling.num_inference_steps)
    info = checkpoint.info
    images = (("image", info.image), ("last image", info.last_image))
    control = ("control video?", "mask?", "references?") if info.control_layers else ()
    plan = plan_for(config.patched({"parallel": {"degrees": "given"}}), 1, CARDS["H200"], checkpoint, is_published)
    return Entry(
        _shown_name(name, config.model.path),
        config.model.path,
        (
            "text",
            *(f"{what}{'?' if takes == 'optional' else ''}" for what, takes in images if takes != "none"),
            *control,
        ),
        size,
        sampling.num_inference_steps,
        info.num_blocks,
        round(plan.best.forecast.memory_bytes / GIGA, 1),
    )


def as_table(entries: list[Entry]) -> str:
    """Return a table for people."""
    rows: list[tuple[str, ...]] = [("name", "model", "inputs", "size", "steps", "blocks", "GB")]
    rows += [
        (e.name, e.model, ", ".join(e.inputs), e.size, *("–" if x is None else str(x) for x in e[4:])) for e in entries
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [*lines, "", "GB: memory of one GPU alone, predicted; s2video plan --model NAME --world N says it for more."]
    )


def as_json(entries: list[Entry]) -> str:
    """Return one JSON object for programs."""
    return json.dumps({"models": [entry._asdict() for entry in entries]}, indent=2)

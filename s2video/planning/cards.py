"""Cards and their links: the figures that convert FLOPs and bytes to predicted seconds.

Peaks and bandwidths are the makers' published ones (dense, per direction). Shares are the fractions of a peak that runs
reach: the H100's are fitted to two published runs, see `forecast`; those of other cards are estimates. Every figure can
be overridden. Knows no model and no mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..config.text import describe_problems, nearest_key, read_number, read_text, read_whole, show
from ..config.yaml_reader import parse_yaml, read_yaml
from ..errors import InputError

Positive = Annotated[float, BeforeValidator(read_number), Field(gt=0)]
Share = Annotated[float, BeforeValidator(read_number), Field(gt=0, le=1)]


class Card(BaseModel):
    """The device and links of one rank. G is 10⁹."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, BeforeValidator(read_text)] = Field(min_length=1, description="name in the table")
    memory_gb: Positive | None = Field(description="memory of one rank, GB; null if unknown, then everything fits")
    tflops_half: Positive = Field(description="peak of dense matrix products in bfloat16 or float16, TFLOP/s")
    tflops_float32: Positive = Field(description="the same in float32")
    matmul_share: Share = Field(description="fraction of the peak that a block reaches outside attention")
    attention_share: Share = Field(description="fraction of the peak that attention reaches")
    node_size: Annotated[int, BeforeValidator(read_whole), Field(ge=1)] = Field(description="ranks per node")
    memory_gbs: Positive = Field(description="bandwidth of the memory, GB/s")
    intra_gbs: Positive = Field(description="bandwidth from a rank to others in its node, GB/s")
    inter_gbs: Positive = Field(description="bandwidth from a rank to other nodes, GB/s")
    host_gbs: Positive = Field(description="bandwidth from host memory to card memory, GB/s")
    link_share: Share = Field(default=0.7, description="fraction of a link's bandwidth that a collective reaches")
    latency_us: Positive = Field(default=20.0, description="time of a collective without bytes, microseconds")
    reserved_gb: Positive = Field(default=1.5, description="memory used by the runtime itself, GB")


def _card(
    name: str,
    memory_gb: float | None,
    peaks: tuple[float, float],
    shares: tuple[float, float],
    *,
    memory: float,
    links: tuple[float, float, float],
    **others: Any,
) -> Card:
    return Card(
        name=name,
        memory_gb=memory_gb,
        tflops_half=peaks[0],
        tflops_float32=peaks[1],
        matmul_share=shares[0],
        attention_share=shares[1],
        memory_gbs=memory,
        intra_gbs=links[0],
        inter_gbs=links[1],
        host_gbs=links[2],
        **{"node_size": 8, **others},
    )


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _card("H100", 80, (989, 67), (0.45, 0.3), memory=3350, links=(450, 50, 55)),
        _card("H200", 141, (989, 67), (0.45, 0.3), memory=4800, links=(450, 50, 55)),
        _card("A100", 80, (312, 19.5), (0.6, 0.55), memory=2039, links=(300, 25, 25)),
        # no direct links; ranks exchange data over PCIe and the host
        _card("RTX4090", 24, (165, 82.6), (0.6, 0.6), memory=1008, links=(16, 3, 25)),
        _card("L40S", 48, (362, 91.6), (0.45, 0.4), memory=864, links=(25, 12.5, 25)),
        # one process of a small machine; only for ranking meshes without a GPU
        _card("cpu", None, (0.05, 0.1), (0.6, 0.3), memory=20, links=(2, 1, 10), node_size=64, latency_us=200),
    )
}


def guess_card(device_name: str) -> Card:
    """Return the table's card for a device name such as "NVIDIA H100 80GB HBM3"; "cpu" if none matches."""
    full_name = device_name.replace(" ", "").lower()
    return next((card for name, card in CARDS.items() if name.lower() in full_name), CARDS["cpu"])


def read_card(name: str, overrides: Sequence[str] = ()) -> Card:
    """Return a card from the table by name, or from a YAML file, and apply overrides such as "intra_gbs=200".

    A file has keys of `Card`; `base: H100` takes missing ones from the table. Raise InputError if any value is invalid.
    """
    by_name = {key.lower(): card for key, card in CARDS.items()}
    if name.lower() in by_name:
        values = by_name[name.lower()].model_dump()
    elif name.endswith((".yaml", ".yml")):
        values = _read_file(Path(name))
    else:
        raise InputError(f"--card: expected {', '.join(CARDS)} or a YAML file of a card's figures, got {name!r}")
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set-card {item!r}: expected key=value, such as intra_gbs=200")
        values[key.strip()] = parse_yaml(text, f"--set-card {item}")
    return _checked(values, f"--card {name}")


def _read_file(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "--card")
    if not isinstance(values, dict):
        raise InputError(f"--card {path}: expected a mapping (key: value), got {show(values)}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or base not in CARDS:
        raise InputError(f"--card {path}: base: expected one of {', '.join(CARDS)}, got {show(base)}")
    return CARDS[base].model_dump() | {"name": path.stem} | values


def _checked(values: dict[str, Any], source: str) -> Card:
    unknown = [key for key in values if key not in Card.model_fields]
    if unknown:
        raise InputError(f"{source}: unknown key {unknown[0]!r}{nearest_key(str(unknown[0]), Card)}")
    missing = [key for key, field in Card.model_fields.items() if field.is_required() and key not in values]
    if missing:
        raise InputError(
            f"{source}: expected {', '.join(missing)}, got no value; add them, or base: H100 for its values"
        )
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {describe_problems(error, Card)}") from None

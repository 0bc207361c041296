"""The kinds of values that settings take, and `setting`, which declares one. The sections are beside it."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from .text import read_fraction, read_number, read_switch, read_text, read_whole

Whole = Annotated[int, BeforeValidator(read_whole)]
Number = Annotated[float, BeforeValidator(read_number)]
Text = Annotated[str, BeforeValidator(read_text)]
Switch = Annotated[bool, BeforeValidator(read_switch)]
Rate = Annotated[
    Fraction,
    PlainValidator(read_fraction),
    PlainSerializer(lambda rate: rate.numerator if rate.denominator == 1 else str(rate), return_type=int | str),
]
MAX_STEPS = 10_000  # schedulers know 1,000; a sidecar with many more would only fill the memory
MAX_SIDE = 2**16  # pixels; larger than any format of video, and small enough to compute with
MAX_FRAMES = 1_000_000
MAX_DRAWS = 100
MAX_TOKENS = 2**16  # of a prompt; embeddings are padded to the setting
Index = Annotated[Whole, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


Changes = Literal["latents", "frames", "rounding", "nothing"]
"""What a setting changes: the latents; only the way from latents to the file; at most the last bits; or nothing, or
only through files whose contents are compared themselves (weights, LoRAs)."""


Names = Literal["program", "target", "targets", "sound", "signer", "file", "files", "model", "lora", "backend"]
"""What the value of a setting names outside the config. `records/trust.py` says what of it a data file may name."""


def setting(
    changes: Changes, *, newer: bool = False, per_process: bool = False, names: Names | None = None, **field: Any
) -> Any:
    """Return pydantic's `Field(**field)` for a setting.

    Every list of settings that count for something is derived from these marks, see `marks.py`.

    Args:
        changes: what it changes.
        newer: there are records without it. It counts only where it is not at its default, so that those stay valid.
        per_process: it holds for all videos that a process makes, so the shots of a batch cannot differ in it.
        names: what its value names outside the config: a program, a file, a model.
    """
    marks: dict[str, Any] = {"changes": changes}
    marks |= {name: True for name, is_set in (("newer", newer), ("per_process", per_process)) if is_set}
    marks |= {} if names is None else {"names": names}
    return Field(**field, json_schema_extra=marks)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

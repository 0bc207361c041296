"""The configuration of a run, made of the sections in `sections.py`: read, overridden, checked.

`load_config` reads a YAML file, applies dotted overrides and answers every mistake with an InputError of one line.
This file does not know the model: whether a size or a block index suits a checkpoint is asked in `models.limits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
)

from ..errors import InputError
from ..media.formats import codec_for
from .sections import (
    CheckpointConfig,
    GuidanceConfig,
    ModelConfig,
    OutputConfig,
    ParallelConfig,
    SamplingConfig,
    Section,
    Text,
)
from .text import describe_problems, nearest_key, parse_yaml, show


class RunConfig(Section):
    """Everything that decides a run, save what the command line adds: prompts, seeds and paths."""

    model: ModelConfig = Field(default=ModelConfig(), description="checkpoint, precision, device")
    prompt: Text | None = Field(default=None, description="default prompt; --prompt and --prompt-file override it")
    negative_prompt: Text = Field(default="", description="what the uncond pass is told; empty: nothing")
    image: Text | None = Field(default=None, description="file that the video starts from, for models that take one")
    last_image: Text | None = Field(default=None, description="file that it ends with, for models that take two")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="size, length, steps, seed")
    guidance: GuidanceConfig = Field(default=GuidanceConfig(), description="CFG and S²-Guidance")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="how ranks share the work")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="when denoising is saved")
    output: OutputConfig = Field(default=OutputConfig(), description="file, frame rate, quality")

    def for_output(self, path: Path) -> RunConfig:
        """These settings with the codec in the place of "auto" that a video called `path` has. Raises InputError."""
        output = self.output.model_copy(update={"codec": codec_for(path, self.output.codec)})
        return self.model_copy(update={"output": output})

    @property
    def image_paths(self) -> tuple[Path | None, Path | None]:
        """The files of `image` and `last_image`."""
        first, last = (None if text is None else Path(text).expanduser() for text in (self.image, self.last_image))
        return first, last


def build_config(values: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Check plain values (as YAML or JSON give them); `source` names their origin in the error. Raises InputError."""
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"{source}: {describe_problems(error, RunConfig)}") from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides such as "guidance.s2_scale=0.3" in order, check the result.

    Raises InputError, in one line, for a file that is missing, unreadable, no YAML or no mapping, for unknown keys
    (with the nearest right one), for wrong types and for values out of bounds.
    """
    return build_config(read_values(path, overrides), origin(path, overrides))


def origin(path: Path, overrides: Sequence[str]) -> str:
    """What an error names as the place of a value that `read_values` read."""
    return f"{path} with --set" if overrides else str(path)


def read_values(path: Path, overrides: Sequence[str] = (), schema: type[BaseModel] = RunConfig) -> dict[str, Any]:
    """The plain values of a YAML file with overrides applied, whose keys are those of `schema`. Raises InputError."""
    values = _read_mapping(path)
    for item in overrides:
        _apply_override(values, item, schema)
    return values


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"config file {path} does not exist: check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"config file {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise InputError(f"config file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    values = parse_yaml(text, str(path))
    if values is None:
        raise InputError(f"config file {path} is empty: expected keys such as model, sampling and guidance")
    if not isinstance(values, dict):
        raise InputError(f"config file {path}: expected a mapping (key: value) at the top, came {show(values)}")
    return values


def _apply_override(values: dict[str, Any], item: str, schema: type[BaseModel]) -> None:
    key, equals, text = item.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set {item!r}: expected key=value, such as guidance.s2_scale=0.3")
    *parents, last = key.split(".")
    fields = schema.model_fields
    for parent in parents:
        annotation = fields[parent].annotation if parent in fields else None
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
    if last not in fields:
        raise InputError(f"--set {item!r}: unknown key {key!r}{nearest_key(key, schema)}")
    target = values
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise InputError(f"{parent}: expected a mapping of keys in the config file, came {target!r}")
    value = parse_yaml(text, f"--set {item}")
    if isinstance(value, dict) and isinstance(target.get(last), dict):
        value = {**target[last], **value}
    target[last] = value

"""The configuration of a run, made of the sections in `sections.py` and `guidance.py`: read, overridden, checked.

`read_config` reads a YAML file, applies dotted overrides and turns every mistake into an InputError of one line;
`models.recipes.load_config` also adds the settings that suit the model.
Whether a size or a block index suits a checkpoint is checked in `models.limits`.
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
from ..system.files import user_path
from .control import ControlConfig
from .fields import Section, Text
from .guidance import GuidanceConfig
from .output import OutputConfig
from .sections import CheckpointConfig, ModelConfig, ParallelConfig, SamplingConfig
from .text import describe_problems, dotted_keys, nearest_key, show
from .yaml_reader import parse_yaml, read_yaml


class RunConfig(Section):
    """Everything that decides one video, or, without a prompt, every video of a run."""

    model: ModelConfig = Field(default=ModelConfig(), description="checkpoint, precision, device")
    prompt: Text | None = Field(default=None, description="default prompt; --prompt and --prompt-file override it")
    negative_prompt: Text = Field(default="", description="prompt of the uncond pass; empty: none")
    image: Text | None = Field(default=None, description="first image of the video, a file; for models that take one")
    last_image: Text | None = Field(default=None, description="last image of the video; for models that take two")
    control: ControlConfig = Field(default=ControlConfig(), description="video, mask and references, for Wan VACE")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="size, length, steps, seed")
    guidance: GuidanceConfig = Field(default=GuidanceConfig(), description="CFG and S²-Guidance")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="how ranks share the work")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="when denoising is saved")
    output: OutputConfig = Field(default=OutputConfig(), description="file, frame rate, quality")

    def patched(self, changes: Mapping[str, Any], source: str = "settings") -> RunConfig:
        """Return these settings with changes, by dotted key or by section, checked again.

        >>> RunConfig().patched({"guidance.s2_scale": 0.5, "sampling": {"seed": 3}}).guidance.s2_scale
        0.5

        Raises:
            InputError: a key or a value that cannot be used; `source` names their origin.
        """
        return build_config(patch(self.model_dump(mode="json"), changes), source)

    def for_output(self, path: Path) -> RunConfig:
        """Return these settings with the codec of a video called `path` in place of "auto". Raises InputError."""
        output = self.output.model_copy(update={"codec": codec_for(path, self.output.codec)})
        return self.model_copy(update={"output": output})

    @property
    def image_paths(self) -> tuple[Path | None, Path | None]:
        """The files of `image` and `last_image`."""
        first, last = (None if text is None else user_path(text, "image") for text in (self.image, self.last_image))
        return first, last


def patch(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with changes; neither argument is modified, and nothing is checked.

    Args:
        values: as YAML or JSON give them.
        changes: values by dotted key ("guidance.s2_scale") or by section; a mapping is merged into a section.

    Raises:
        InputError: a key below something that is not a section.
    """
    patched = dict(values)
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = patched
        for depth, section in enumerate(sections, 1):
            inner = target.get(section)
            if not isinstance(inner, Mapping | None):
                raise InputError(f"{'.'.join(sections[:depth])}: expected a mapping of keys, got {show(inner)}")
            target[section] = target = dict(inner or {})
        is_section = isinstance(value, Mapping) and isinstance(target.get(last), Mapping)
        target[last] = {**target[last], **value} if is_section else value
    return patched


def build_config(values: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Check plain values (as YAML or JSON give them); `source` names their origin in the error. Raises InputError."""
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"{source}: {describe_problems(error, RunConfig)}") from None


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides such as "guidance.s2_scale=0.3" in order, check the result.

    Raises InputError, in one line, for a file that is missing, unreadable, not YAML or not a mapping, for unknown keys
    (with the nearest right one), for wrong types and for values out of bounds.
    """
    return build_config(read_values(path, overrides), origin(path, overrides))


def origin(path: Path, overrides: Sequence[str]) -> str:
    """Return the name that errors give to the source of values from `read_values`."""
    return f"{path} with --set" if overrides else str(path)


def read_values(path: Path, overrides: Sequence[str] = (), schema: type[BaseModel] = RunConfig) -> dict[str, Any]:
    """Return the plain values of a YAML file with overrides applied, whose keys are those of `schema`.

    Raises InputError.
    """
    values = _read_mapping(path)
    for item in overrides:
        values = patch(values, parse_override(item, schema))
    return values


def parse_override(item: str, schema: type[BaseModel] = RunConfig) -> dict[str, Any]:
    """Return "guidance.s2_scale=0.3" as {"guidance.s2_scale": 0.3}. Raises InputError for a key that is not known."""
    key, equals, text = item.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set {item!r}: expected key=value, such as guidance.s2_scale=0.3")
    if key not in dotted_keys(schema):
        raise InputError(f"--set {item!r}: unknown key {key!r}{nearest_key(key, schema)}")
    return {key: parse_yaml(text, f"--set {' '.join(item[:100].split())}")}


def _read_mapping(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "config file")
    if values is None:
        raise InputError(f"config file {path} is empty: expected keys such as model, sampling and guidance")
    if not isinstance(values, dict):
        raise InputError(f"config file {path}: expected a mapping (key: value) at the top, got {show(values)}")
    if {"schema", "latents", "masks"} <= values.keys():
        raise InputError(
            f"config file {path}: expected settings, got a sidecar; s2video reproduce {path} makes its video "
            "again, and its key `config` holds the settings"
        )
    return values

"""A model's recipe: the settings that suit it, from the config of the package that is made for it.

A model is recognised by the name of a config, by its Hub id, or, in a folder, by what its config.json says, so that
command line, run files and Python use the same settings for the same model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config.named import CONFIGS, EMBEDDED_CONFIG, config_names, configs_of, find_config, named_config
from ..config.run import RunConfig, build_config, origin, patch, read_values
from ..errors import InputError
from ..system.files import user_path
from .checkpoint import ASSETS, EMBEDDED, read_json

PUBLISHED = ASSETS / "published"
_OWN = ("prompt", "image", "last_image", "output.path")  # of a video, not of a model


class Loaded(NamedTuple):
    """A config, and a line for the user about settings that come from elsewhere; empty if there is nothing to say."""

    config: RunConfig
    note: str = ""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config by name or from a YAML file; settings that a file does not set come from its model's recipe.

    Args:
        overrides: such as "guidance.s2_scale=0.3", applied in order.

    Raises:
        InputError: a config that cannot be found, read or used.
    """
    return load_config_with_note(str(path), overrides).config


def load_config_with_note(name: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read as `load_config` does, and say which recipe a file takes settings from."""
    path = find_config(name)
    values = read_values(path, overrides)
    base, recipe = with_recipe(values)
    config = build_config(base, origin(path, overrides))
    if recipe is None or path.resolve().parent == CONFIGS or config == build_config(values):
        return Loaded(config, "" if recipe else _general(config))
    return Loaded(config, f"{path}: settings that it does not set are those of the config {recipe}")


def load_model_config(model: str, overrides: Mapping[str, Any]) -> Loaded:
    """Return a model's recipe with changes.

    Args:
        model: name of a config, embedded model's name, folder or Hub id.
        overrides: values by dotted key or by section.

    Raises:
        InputError: a model that cannot be found, or a change that cannot be used.
    """
    if model in config_names():
        return Loaded(named_config(model).patched(overrides))
    if "/" not in model and model not in EMBEDDED and not user_path(model).exists():
        near = difflib.get_close_matches(model, [*config_names(), *EMBEDDED], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see s2video models"
        raise InputError(f"model {model!r}: expected a name of s2video models, a folder, or a Hub id: {hint}")
    base, recipe = with_recipe(patch({"model": {"path": model}}, {}))
    config = build_config(base, f"the recipe of {model}").patched(overrides)
    if recipe is None:
        return Loaded(config, _general(config))
    return Loaded(config, "" if model in EMBEDDED else f"{model}: settings of the config {recipe}")


def with_recipe(values: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return plain values on top of their model's recipe, and the name of the recipe's config, if there is one."""
    model = values.get("model")
    path = model.get("path", EMBEDDED[0]) if isinstance(model, Mapping) else EMBEDDED[0]
    name = find_recipe(path) if isinstance(path, str) else None
    if name is None:
        return dict(values), None
    recipe = named_config(name).model_dump(mode="json")
    for key in _OWN:
        section, _, field = key.rpartition(".")
        del (recipe[section] if section else recipe)[field]
    merged = dict(recipe)
    for key, value in values.items():
        is_section = isinstance(value, Mapping) and isinstance(recipe.get(key), Mapping)
        merged[key] = {**recipe[key], **value} if is_section else value
    return merged, name


def find_recipe(model: str) -> str | None:
    """Return the name of the config for a model: by name, by Hub id, or by what a folder holds; None if none fits."""
    named = next(configs_of(model), None)
    if named is not None or model in EMBEDDED:
        return named or EMBEDDED_CONFIG
    folder = user_path(model)
    return _recognised(folder) if (folder / "model_index.json").is_file() else None


def _recognised(folder: Path) -> str | None:
    """The first config whose model has the same pipeline and the same transformer settings as a local folder."""
    try:
        index, transformer = read_json(folder / "model_index.json"), read_json(folder / "transformer" / "config.json")
        for name in config_names():
            published = PUBLISHED / named_config(name).model.path.replace("/", "--")
            published = published if published.is_dir() else ASSETS / named_config(name).model.path
            if (
                read_json(published / "model_index.json").get("_class_name") == index.get("_class_name")
                and _public(read_json(published / "model_index.json"), ("boundary_ratio", "expand_timesteps"))
                == _public(index, ("boundary_ratio", "expand_timesteps"))
                and _settings(read_json(published / "transformer" / "config.json")) == _settings(transformer)
            ):
                return name
    except InputError:
        return None
    return None


def _public(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: values.get(key) for key in keys}


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith("_") and value is not None}


def _general(config: RunConfig) -> str:
    """A warning for a model without a recipe whose size is left at the default of the embedded model."""
    sampling, default = config.sampling, RunConfig().sampling
    if (sampling.width, sampling.height) != (default.width, default.height):
        return ""
    return (
        f"{config.model.path}: no config is made for this model, so it makes {sampling.width}x{sampling.height} px, "
        f"{sampling.num_frames} frames with λ {config.guidance.cfg_scale:g}: set sampling.width, sampling.height, "
        "sampling.num_frames and guidance.cfg_scale"
    )

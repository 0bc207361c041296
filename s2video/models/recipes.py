"""A model's recipe: the settings for it, from the packaged config of this model.

A model is recognized by the name of a config, by its Hub id, or by the config.json in its folder, so the command line,
run files and Python use the same settings for the same model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config.named import CONFIGS, config_names, configs_of, find_config, named_config
from ..config.run import RunConfig, build_config, origin, patch, read_values
from ..errors import InputError
from ..system.files import user_path
from .checkpoint import ASSETS, EMBEDDED
from .weight_files import index_of, read_json

PUBLISHED = ASSETS / "published"
# settings of a video, not of a model
_OWN = ("prompt", "image", "last_image", "control.video", "control.mask", "control.references", "output.path")


class Loaded(NamedTuple):
    """A config, and a message for the user about settings from a recipe or missing ones; empty if there is none."""

    config: RunConfig
    note: str = ""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config by name or from a YAML file; settings that a file does not set come from its model's recipe.

    Args:
        overrides: such as "guidance.s2_scale=0.3", applied in order.

    Raises:
        InputError: if the config cannot be found or read, or is invalid.
    """
    return load_config_with_note(str(path), overrides).config


def load_config_with_note(name: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read a config like `load_config`, with a message about the recipe that a file gets settings from."""
    path = find_config(name)
    values = read_values(path, overrides)
    base, recipe = with_recipe(values)
    config = build_config(base, origin(path, overrides))
    if recipe is None or path.resolve().parent == CONFIGS or config == build_config(values):
        return Loaded(config, "" if recipe else _general(config))
    return Loaded(config, recipe_note(path, recipe))


def load_model_config(model: str, overrides: Mapping[str, Any]) -> Loaded:
    """Return a model's recipe with changes.

    Args:
        model: name of a config, embedded model's name, folder or Hub id.
        overrides: values by dotted key or by section.

    Raises:
        InputError: if the model cannot be found or a change is invalid.
    """
    if model in config_names():
        return Loaded(named_config(model).patched(overrides))
    if "/" not in model and model not in EMBEDDED and not user_path(model, "model").exists():
        near = difflib.get_close_matches(model[:100], [*config_names(), *EMBEDDED], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see s2video models"
        raise InputError(f"model: expected a name from s2video models, a folder, or a Hub id, got {model!r}; {hint}")
    if model.startswith(("~", "/", ".")) and not user_path(model, "model").exists():
        raise InputError(f"model: expected a checkpoint's folder, got {model!r}, which does not exist; check the path")
    base, recipe = with_recipe(patch({"model": {"path": model}}, {}))
    config = build_config(base, f"the recipe of {model}").patched(overrides)
    if recipe is None:
        return Loaded(config, _general(config))
    return Loaded(config, "" if model in EMBEDDED else f"{model}: settings of the config {recipe}")


def recipe_note(path: object, recipe: str) -> str:
    """Return the line for a user about a file whose missing settings come from the config `recipe`."""
    return f"{path}: missing settings have the values of the config {recipe}"


def with_recipe(values: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return values merged over their model's recipe, and the name of the recipe's config; None if there is none."""
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
    """Return the name of the config for a model, by name, Hub id, or content of a folder; None if there is none."""
    if (named := next(configs_of(model), None)) is not None:
        return named
    folder = user_path(model, "model.path")
    return _recognized(folder) if index_of(folder).is_file() else None


def _recognized(folder: Path) -> str | None:
    """Return the first config whose model has the same pipeline and transformer settings as a local folder."""
    try:
        index, transformer = read_json(index_of(folder)), read_json(folder / "transformer" / "config.json")
        for name in config_names():
            published = PUBLISHED / named_config(name).model.path.replace("/", "--")
            published = published if published.is_dir() else ASSETS / named_config(name).model.path
            if (
                read_json(index_of(published)).get("_class_name") == index.get("_class_name")
                and _public(read_json(index_of(published)), ("boundary_ratio", "expand_timesteps"))
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
    """Return a warning if the size is the default of the embedded model, for a model without a recipe."""
    sampling, default = config.sampling, RunConfig().sampling
    if (sampling.width, sampling.height) != (default.width, default.height):
        return ""
    return (
        f"{config.model.path}: no config exists for this model, so it uses the defaults {sampling.width}x"
        f"{sampling.height} px, {sampling.num_frames} frames and λ {config.guidance.cfg_scale:g}; "
        "set sampling.width, sampling.height, sampling.num_frames and guidance.cfg_scale"
    )

"""The configs that the package brings, found by name: `shapes`, `wan2.1-t2v-14b-720p`, …"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..errors import InputError
from ..system.files import user_path
from .run import RunConfig, read_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EMBEDDED_CONFIG = "shapes"
# names of models whose config has another one
_OTHER_NAMES = {"shapes-wan": EMBEDDED_CONFIG, "shapes-wan-24": "shapes-24"}
_BATCH = "batch-"  # begins the names of run files


def config_names() -> list[str]:
    """Return the names of the configs of single models, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(_BATCH))


def find_config(name: str) -> Path:
    """Return the file of a config: one of the package by name, or a YAML file.

    Raises:
        InputError: neither; the nearest names are listed.
    """
    path = CONFIGS / f"{_OTHER_NAMES.get(name, name)}.yaml"
    if name == Path(name).name and path.is_file():
        return path
    if Path(name).suffix in (".yaml", ".yml") or user_path(name).is_file():
        return user_path(name)
    near = difflib.get_close_matches(name, config_names(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see s2video models"
    raise InputError(f"config {name!r}: expected a name of s2video models, or a YAML file: {hint}")


def configs_of(model: str) -> Iterator[str]:
    """Yield the names of the configs for a model, given by its name or Hub id, in the order of their names."""
    for name in config_names():
        if named_config(name).model.path == model:
            yield name


@cache
def named_config(name: str) -> RunConfig:
    """Return one of the package's configs. Raises InputError for a name that is not known."""
    return read_config(find_config(name))

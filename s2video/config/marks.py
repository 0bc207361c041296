"""Which settings count for what, derived from the mark that every field carries (see `fields.setting`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from .fields import Changes, Names
from .run import RunConfig

PIXELS: frozenset[Changes] = frozenset({"latents", "frames"})
OF_A_JOB = frozenset({"sampling.seed"})  # records state the seed of each video themselves


def marked_settings(config: Mapping[str, Any], kinds: frozenset[Changes]) -> dict[str, Any]:
    """Return those settings of a dumped config that change something of these kinds, by section and name.

    A mark on a section's field holds for all that is below it. Fields outside the sections (prompt, images) belong to a
    job and are not in it. Settings that are newer than some records are left out where they are at their default.
    """
    found = {}
    for section, name, marks in _fields():
        key = f"{section}.{name}"
        if marks.get("changes") not in kinds or key in OF_A_JOB:
            continue
        if not marks.get("newer"):
            found[key] = config[section][name]
        elif (value := config.get(section, {}).get(name, _defaults()[section][name])) != _defaults()[section][name]:
            found[key] = value
    return found


@cache
def process_settings() -> frozenset[str]:
    """Return the dotted keys of settings that hold for all videos of a process."""
    return frozenset(f"{section}.{name}" for section, name, marks in _fields() if marks.get("per_process"))


@cache
def settings_that_name() -> dict[str, Names]:
    """Return the dotted keys of settings whose value names something outside the config, and what that is."""
    found: dict[str, Names] = {"image": "file", "last_image": "file"}
    return found | {f"{section}.{name}": marks["names"] for section, name, marks in _fields() if "names" in marks}


@cache
def _fields() -> tuple[tuple[str, str, Mapping[str, Any]], ...]:
    """(section, name, marks) of every setting in a section."""
    found = []
    for section, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for name, setting in field.annotation.model_fields.items():
                marks = setting.json_schema_extra
                found.append((section, name, marks if isinstance(marks, dict) else {}))
    return tuple(found)


@cache
def _defaults() -> dict[str, Any]:
    return RunConfig().model_dump(mode="json")

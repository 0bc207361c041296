"""What a config from a data file may ask for: a sidecar or saved latents can come from anywhere.

Such a file describes a video. It never names a program, a path to write to, or something to download. Which settings
are concerned is marked in `config/sections.py` (`names`); docs/security.md lists the rules. Configs and run files are
the user's own words and do not come here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..config.marks import settings_that_name
from ..config.run import RunConfig
from ..config.sections import FILE_SETTINGS
from ..errors import InputError
from ..system.files import user_path


class FromFile(NamedTuple):
    """A config that is safe to run, and a line for the user about each setting that was left out, by dotted key."""

    config: RunConfig
    notes: Mapping[str, str]


def config_from_file(config: RunConfig, source: object, own: Mapping[str, Any] | None = None) -> FromFile:
    """Return the config of a data file without what such a file may not ask for.

    Args:
        source: names the file in messages.
        own: settings that the user named, by dotted key. They are used as they are; None counts as not named.

    Raises:
        InputError: an image or a LoRA that is not a file on this machine.
    """
    named = {key: value for key, value in (own or {}).items() if value is not None}
    changes: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for key, kind in settings_that_name().items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, name)
        if key in named or not value:
            continue
        if kind in _DROPPED:
            changes[key] = None
            notes[key] = f"{source}: {key} {value!r} is not used: {_DROPPED[kind]}"
        elif kind == "target":
            changes[key] = RunConfig().output.path
        elif kind == "targets":
            changes[key] = ()
        elif kind == "backend" and "hub" in value.lower():
            changes[key] = None
            notes[key] = f"{source}: {key} {value!r} is not used: a data file may not have code downloaded"
        elif kind == "file":
            _require_local(value, key, source)
        elif kind == "files":
            for path in value:
                _require_local(path, key, source)
        elif kind == "lora":
            for lora in value:
                _require_local(lora.path, key, source)
    if named.get("model.path", config.model.path) != config.model.path:
        # these are of another model
        changes |= dict.fromkeys(f"model.{name}" for name in ("revision", "variant", *FILE_SETTINGS))
    return FromFile(config.patched(changes | named, str(source)), notes)


_DROPPED = {
    "program": "a data file may not name a program; --ffmpeg does",
    "signer": "a data file may not have anything signed; --credentials and --credentials-key do",
    "sound": "a data file may not name a sound file, so that sound is left out; --audio adds one",
}


def _require_local(path: str, key: str, source: object) -> None:
    """Raise InputError unless `path` is a regular file or a folder: no device, no pipe, nothing to download."""
    try:
        place = user_path(path)
        is_there = place.is_file() or place.is_dir()
    except (OSError, ValueError):  # an InputError of `user_path` too
        is_there = False
    if not is_there:
        raise InputError(
            f"{source}: {key}: expected a file or a folder on this machine, got {path!r}; nothing is downloaded "
            "because a data file names it: download it yourself to that path"
        )

"""File names from templates such as "{show}_{shot}_v{version:03d}_s{seed}.{ext}"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from .errors import InputError


def render_name(template: str, fields: Mapping[str, object]) -> PurePath:
    """A relative path from a template and its fields. Raises InputError for unknown fields and for path tricks."""
    try:
        name = template.format_map(fields)
    except KeyError as error:
        raise InputError(f"name {template!r}: unknown field {error}: expected one of {', '.join(fields)}") from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"name {template!r}: {error}") from None
    path = PurePath(name)
    tricks = path.is_absolute() or any(part in ("..", ".") or part.startswith((".", "~")) for part in path.parts)
    if not path.name or tricks or not name.isprintable() or "\\" in name:
        raise InputError(f"name {template!r}: expected a relative path of plain names, came {name!r}")
    return path

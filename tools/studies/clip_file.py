"""A cell's file: a line of JSON that says what it is of, then a line for each clip, written as they are made.

A process killed at any moment leaves whole lines and at most the beginning of one more, which is cut off on opening.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2video.errors import InputError


class Records:
    """The file at `path`, opened to resume it.

    Args:
        header: all that decides the results: weights, settings, versions. What the file begins with has to be the same.

    Raises:
        InputError: the file is of something else; it is left as it is, and the message names what differs.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path = path
        header = json.loads(json.dumps(header))  # tuples have become lists, as in the file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if lines:
            _require_same(path, json.loads(lines[0]), header)
        if whole < len(content):
            with path.open("rb+") as file:
                file.truncate(whole)
        self.rows = [json.loads(line) for line in lines[1:]]
        if not lines:
            self._append([header])

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._append(rows)
        self.rows += rows

    def _append(self, objects: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in objects)
        with self._path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def read_records(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Header and whole rows of a cell's file; None where there is none, or not even a header."""
    if not path.exists():
        return None
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return (json.loads(lines[0]), [json.loads(line) for line in lines[1:]]) if lines else None


def _require_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    names = _differences(found, expected)
    if names:
        raise InputError(
            f"{path} was made with other settings ({', '.join(names[:5])}): choose another --work, or delete the file "
            "to start it again"
        )


def _differences(found: Any, expected: Any, prefix: str = "") -> list[str]:
    """Dotted names of what is not the same in two JSON documents."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = dict.fromkeys([*found, *expected])
        return [d for n in names for d in _differences(found.get(n), expected.get(n), f"{prefix}{n}.")]
    return [] if found == expected else [prefix.rstrip(".")]

"""The result file of the study: its settings and spreads first, then one line for each point of each part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from json_lines import read_lines, write_lines


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write what `summarize` returns."""
    header = {name: value for name, value in summary.items() if name != "parts"}
    parts = summary["parts"]
    write_lines(path, header, ({"part": part, **entry} for part, entries in parts.items() for entry in entries))


def read_summary(path: Path) -> dict[str, Any]:
    """Read what `write_summary` wrote.

    Raises:
        InputError: if it is no such file.
    """
    header, records = read_lines(path)
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        parts.setdefault(record.pop("part"), []).append(record)
    return {**header, "parts": parts}

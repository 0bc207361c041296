"""A list of shots, inline or from a JSONL, CSV or TXT file -> what each of them sets, by dotted key.

It knows the form of such lists and the kinds of the settings, not what becomes of them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from ..config.marks import process_settings
from ..config.run import RunConfig
from ..config.text import dotted_keys, near_key, nearest_key, parse_yaml, show
from ..errors import InputError

NAME = "shot"  # the key that names a shot
FIELDS = "fields."  # keys that only name files
_PATH = "output.path"


@dataclass(frozen=True)
class Shot:
    """What one shot sets.

    Attributes:
        where: its place, for messages, such as "shots.csv, line 3".
        values: settings by dotted key; beside those of a run, `shot` and `fields.*`.
        problems: why it cannot be used, as sentences; none for one that can.
    """

    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def setting_keys() -> list[str]:
    """Every setting of a run that a shot or a sweep may set, as a dotted key."""
    keys = list(dotted_keys(RunConfig))
    sections = {key.partition(".")[0] for key in keys if "." in key}
    return [key for key in keys if key not in sections | process_settings() | {_PATH}]


def key_problem(key: Any) -> str | None:
    """Why `key` is no setting of a run that a shot or a sweep may set; None if it is one."""
    if key == _PATH:
        return f"{key}: a batch names its files by folder and name; leave it out"
    if key in process_settings():
        return f"{key}: is one for the whole batch: set it for all shots at once"
    if not isinstance(key, str) or key not in setting_keys():
        return f"unknown key {str(key)!r}{_hint(str(key))}"
    return None


def _hint(key: str) -> str:
    if key.isidentifier() and near_key(key, RunConfig) is None:
        return f": expected a setting, or {FIELDS}{key} for a field that only names files"
    return nearest_key(key, RunConfig)


def inline_shots(items: list[Any], source: str) -> list[Shot]:
    """Shots of a YAML list: a prompt, or a mapping of settings, each."""
    return [_shot(item, f"{source}, shot {number}") for number, item in enumerate(items, 1)]


def read_shots(path: Path) -> list[Shot]:
    """Shots of a file, by its suffix: .jsonl (a JSON object or a prompt a line), .csv (a header of keys), .txt (a
    prompt a line). Blank lines are skipped.

    Raises:
        InputError: a file that cannot be read as such, or without a shot.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_txt}
    if path.suffix.lower() not in readers:
        raise InputError(f"shots {path}: expected a name that ends in {', '.join(readers)}, got {path.name!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"shots {path}: byte {error.start} is not UTF-8: save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"shots {path}: cannot be read ({error.strerror}): check the path") from None
    shots = list(readers[path.suffix.lower()](text, str(path)))
    if not shots:
        raise InputError(f"shots {path}: expected at least one shot, got an empty file")
    return shots


def _read_txt(text: str, source: str) -> Iterator[Shot]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _shot(line.strip(), f"{source}, line {number}")


def _read_jsonl(text: str, source: str) -> Iterator[Shot]:
    for number, line in enumerate(text.split("\n"), 1):  # JSON text may hold what splitlines() takes for a line's end
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            yield _shot(json.loads(line, object_pairs_hook=_without_repetition), where)
        except ValueError as error:
            yield Shot(where, problems=(f"not usable as JSON: {error}",))


def _read_csv(text: str, source: str) -> Iterator[Shot]:
    """Cells of settings that are text stay as they are, others are read as YAML; an empty cell sets nothing."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [key.strip() for key in next(reader, [])]
        if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])) is not None:
            raise InputError(
                f"shots {source}: expected columns separated by commas, got the separator {found[0]!r}; save the "
                "table as comma-separated CSV"
            )
        if len(set(header)) < len(header):
            raise InputError(f"shots {source}: a column is given twice in the header: keep one")
        for cells in reader:
            where = f"{source}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                yield Shot(where, problems=(f"expected {len(header)} cells as in the header, got {len(cells)}",))
                continue
            try:
                yield _shot({k: _cell(k, c) for k, c in zip(header, cells, strict=True) if c.strip()}, where)
            except InputError as error:
                yield Shot(where, problems=(str(error),))
    except csv.Error as error:
        raise InputError(f"shots {source}, line {reader.line_num}: not usable as CSV: {error}") from None


def _cell(key: str, text: str) -> Any:
    return text.strip() if key == NAME or _is_text(key) else parse_yaml(text, key)


def _is_text(key: str) -> bool:
    """Whether a setting is free text, so that a cell such as `on` or 010 means its letters."""
    model: type[BaseModel] = RunConfig
    *sections, last = key.split(".")
    for section in sections:
        annotation = model.model_fields[section].annotation if section in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return False
        model = annotation
    annotation = model.model_fields[last].annotation if last in model.model_fields else None
    kinds = {get_args(kind)[0] if get_args(kind) else kind for kind in get_args(annotation) or (annotation,)}
    return kinds - {NoneType} == {str}


def _shot(item: Any, where: str) -> Shot:
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, dict):
        return Shot(where, problems=(f"expected a prompt or a mapping of settings, got {show(item)}",))
    values: dict[str, Any] = {}
    problems = []
    for key, value in _flat(item):
        if key in values:
            problems.append(f"{key} is given twice: keep one")
        elif key != NAME and not key.startswith(FIELDS) and (problem := key_problem(key)) is not None:
            problems.append(problem)
        values[key] = value
    return Shot(where, values, tuple(problems))


def _flat(item: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """A section may be given as a mapping, or its settings by dotted keys."""
    for key, value in item.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", inner_value) for inner, inner_value in value.items())
        else:
            yield str(key), value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice: keep one")
    return values

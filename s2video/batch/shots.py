"""Reading of shots, from a YAML list or a JSONL, CSV or TXT file, to settings by dotted key.

Knows the formats of such lists and the types of the settings, not how they are used.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from ..config.marks import process_settings
from ..config.run import RunConfig
from ..config.text import dotted_keys, near_key, nearest_key, show
from ..config.yaml_reader import parse_yaml
from ..errors import InputError
from ..system.json_reader import parse_json
from ..system.text_file import read_text_file

NAME = "shot"  # the key that names a shot
FIELDS = "fields."  # keys that only name files
_PATH = "output.path"


@dataclass(frozen=True)
class Shot:
    """The settings of one shot.

    Attributes:
        where: where it is defined, for messages, such as "shots.csv, line 3".
        values: settings by dotted key: those of a run, `shot` and `fields.*`.
        problems: reasons why it is invalid, as sentences; empty if it is valid.
    """

    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@cache
def setting_keys() -> tuple[str, ...]:
    """Return every setting of a run that a shot or a sweep can set, as dotted keys."""
    keys = list(dotted_keys(RunConfig))
    sections = {key.partition(".")[0] for key in keys if "." in key}
    others = sections | process_settings() | {_PATH}
    return tuple(key for key in keys if key not in others)


def key_problem(key: Any) -> str | None:
    """Return why a shot or a sweep cannot set `key`; None if it can."""
    if key == _PATH:
        return f"{key}: a batch sets the paths of its files by folder and name; leave it out"
    if key in process_settings():
        return f"{key}: has one value for the whole batch; set it for all shots together"
    if not isinstance(key, str) or key not in setting_keys():
        return f"unknown key {str(key)!r}{_hint(str(key))}"
    return None


def _hint(key: str) -> str:
    if key.isidentifier() and near_key(key, RunConfig) is None:
        return f": expected a setting, or {FIELDS}{key} for a field that only names files"
    return nearest_key(key, RunConfig)


def inline_shots(items: list[Any], source: str) -> list[Shot]:
    """Return the shots of a YAML list, in which each item is a prompt or a mapping of settings."""
    return [_shot(item, f"{source}, shot {number}") for number, item in enumerate(items, 1)]


def read_shots(path: Path) -> list[Shot]:
    """Read the shots in a file, by suffix. Blank lines are skipped.

    A .jsonl file has a JSON object or a prompt per line, a .csv file a header of keys, a .txt file a prompt per line.

    Raises:
        InputError: if the file cannot be read in its format, or has no shot.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_txt}
    if path.suffix.lower() not in readers:
        raise InputError(f"shots {path}: expected a name that ends in {', '.join(readers)}, got {path.name!r}")
    text = read_text_file(path, "shots")
    shots = list(readers[path.suffix.lower()](text, str(path)))
    if not shots:
        raise InputError(f"shots {path}: expected at least one shot, got an empty file")
    return shots


def _read_txt(text: str, source: str) -> Iterator[Shot]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _shot(line.strip(), f"{source}, line {number}")


def _read_jsonl(text: str, source: str) -> Iterator[Shot]:
    for number, line in enumerate(
        text.split("\n"), 1
    ):  # splitlines() also splits at characters that JSON text can contain
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            yield _shot(parse_json(line, where, remedy="check the line", refuse_repeated_keys=True), where)
        except InputError as error:
            yield Shot(where, problems=(str(error).removeprefix(f"{where}: "),))


def _read_csv(text: str, source: str) -> Iterator[Shot]:
    """Read shots. Cells of text settings are used verbatim, others are parsed as YAML; an empty cell sets nothing."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [key.strip() for key in next(reader, [])]
        if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])) is not None:
            raise InputError(
                f"shots {source}: expected columns separated by commas, got the separator {found[0]!r}; save the "
                "table as comma-separated CSV"
            )
        if len(set(header)) < len(header):
            raise InputError(f"shots {source}: expected each column once in the header, got one twice; keep one")
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
        raise InputError(
            f"shots {source}, line {reader.line_num}: expected CSV, got an error ({error}); correct the line"
        ) from None


def _cell(key: str, text: str) -> Any:
    return text.strip() if key == NAME or _is_text(key) else parse_yaml(text, key)


def _is_text(key: str) -> bool:
    """Return whether a setting is text, so that a cell such as `on` or 010 is not parsed."""
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
            problems.append(f"{key}: expected one value, got two; keep one")
        elif key != NAME and not key.startswith(FIELDS) and (problem := key_problem(key)) is not None:
            problems.append(problem)
        values[key] = value
    return Shot(where, values, tuple(problems))


def _flat(item: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted key, from sections as mappings or from dotted keys."""
    for key, value in item.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", inner_value) for inner, inner_value in value.items())
        else:
            yield str(key), value

"""YAML from outside: read within bounds on bytes, depth, aliases and digits; every failure is one InputError.

Config files, run files, `--set` and the cells of a table are read here. Compared with `yaml.safe_load`, numbers that
YAML would misread and keys that are given twice are refused, and no tags but those of plain values are known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..system.text_file import read_text_file

MAX_BYTES = 32 * 2**20
MAX_DEPTH = 50
MAX_DIGITS = 400  # Python refuses to read or print much longer numbers
MAX_GROWTH = 100  # values with aliases written out, for each value in the text

_OCTAL_OR_SEXAGESIMAL = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_PLAIN = ("null", "bool", "int", "float", "timestamp", "seq", "map", "str")


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses what it would misread: 010 as 8, 12:30 as 750, a key given twice."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError):  # of a tag's content
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"expected a value of the tag !!{kind}, got {str(node.value)[:60]!r}", node.start_mark
            ) from None

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        if len(text) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of over {MAX_DIGITS} digits", node.start_mark
            )
        if _OCTAL_OR_SEXAGESIMAL.fullmatch(text):
            value = super().construct_yaml_int(node) if "." not in text else super().construct_yaml_float(node)
            raise yaml.constructor.ConstructorError(
                None, None, f"YAML reads {text} as {value}: write {value}, or quote it as text", node.start_mark
            )
        if node.tag.endswith(":int"):
            return super().construct_yaml_int(node)
        return super().construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice: keep one", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag and tag.rpartition(":")[2] in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.yaml_constructors[None] = yaml.SafeLoader.yaml_constructors[None]  # refuses


def read_yaml(path: Path, kind: str) -> Any:
    """Return what a YAML file holds; `kind`, such as "config file", names it. Raises InputError like `parse_yaml`."""
    return parse_yaml(read_text_file(path, kind, max_bytes=MAX_BYTES), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Return what a YAML text holds; `source` names it in the message.

    Raises:
        InputError: text that is not YAML within the bounds, misread numbers, repeated keys.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"{source}: expected at most {MAX_BYTES} bytes of YAML, got more; split it")
    try:
        _check_bounds(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        hint = " (YAML is indented with spaces, not tabs)" if "'\\t'" in str(error.problem) else ""
        raise InputError(f"{source}{where}: not usable as YAML: {error.problem or error.context}{hint}") from None
    except (yaml.YAMLError, ValueError, IndexError, RecursionError) as error:
        raise InputError(f"{source}: not usable as YAML: {' '.join(str(error).split())}") from None


def _check_bounds(text: str) -> None:
    """Raise ConstructorError for a text that is nested too deep, or that its aliases would make too large.

    Streams the parser's events, so nothing is built. The size of an anchor counts again at each of its aliases.
    """
    opened: list[tuple[str | None, int]] = []  # anchor, and the size before it
    sizes: dict[str, int] = {}
    size = 0
    for written, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                raise _refused(f"the alias *{event.anchor} is inside of what it stands for", event)
            size += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, size))
            if len(opened) > MAX_DEPTH:
                raise _refused(f"expected at most {MAX_DEPTH} levels, got more", event)
            size += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = size - before
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if size > MAX_GROWTH * (written + 10):
            raise _refused(f"its aliases make it more than {MAX_GROWTH} times as large: write it without them", event)


def _refused(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, event.start_mark)

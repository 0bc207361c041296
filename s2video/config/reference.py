"""What every setting takes, means and defaults to, in words: for `s2video config` and docs/configs.md."""

from __future__ import annotations

import itertools
import json
import types
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true, false", Fraction: "number, ratio", Any: "any"}


class Setting(NamedTuple):
    """One setting, in words.

    Attributes:
        kind: what it takes, with its bounds.
        default: as YAML has it; "required" if there is none.
    """

    key: str
    kind: str
    default: str
    meaning: str


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a model, those of its sections after its own."""
    sections = []
    for name in model.model_fields:
        inner = section_model(model, name)
        if inner is None:
            yield describe_setting(model, name, prefix)
        else:
            sections.append((f"{prefix}{name}.", inner))
    for inner_prefix, inner in sections:
        yield from settings_of(inner, inner_prefix)


def describe_setting(model: type[BaseModel], name: str, prefix: str = "") -> Setting:
    """Return one field of a model in words."""
    field = model.model_fields[name]
    default = "required" if field.is_required() else _value(field.default)
    return Setting(f"{prefix}{name}", _kind(field), default, field.description or "")


def section_model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of a section; None for a field that is a setting."""
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _kind(field: FieldInfo) -> str:
    return _bounded(_words(field.annotation), field.metadata)


def _bounded(words: str, metadata: Iterable[Any]) -> str:
    """Add the bounds that pydantic's metadata name."""
    bounds = [
        f"{sign} {'2^63' if bound == 2**63 else format(bound)}"
        for constraint in metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if (bound := getattr(constraint, name, None)) is not None
    ]
    null = " or null" if words.endswith(" or null") else ""
    return " ".join([words.removesuffix(null), *([" and ".join(bounds)] if bounds else [])]) + null


def _words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is types.NoneType else _words(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (tuple, list):
        inner = ["..." if argument is ... else _words(argument) for argument in arguments]
        return f"[{', '.join(inner)}{', ...' if origin is list else ''}]"
    if origin is dict:
        return "mapping"
    if origin is Annotated:
        fields = [item for item in kind.__metadata__ if isinstance(item, FieldInfo)]
        return _bounded(_words(arguments[0]), itertools.chain.from_iterable(field.metadata for field in fields))
    return "mapping" if isinstance(kind, type) and issubclass(kind, BaseModel) else _WORDS[kind]


def _value(value: Any) -> str:
    return str(value) if isinstance(value, Fraction) or (isinstance(value, str) and value) else json.dumps(value)

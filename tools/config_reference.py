"""docs/configs.md from the pydantic models: every setting of a run and of a batch, its kind, default and meaning.

    python tools/config_reference.py > docs/configs.md

What the models do not say is not in it: which values suit a checkpoint, `s2video.models.limits` asks.
"""

import itertools
import json
import types
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from s2video.batch.run_file import RunFile
from s2video.config.run import RunConfig
from s2video.config.sections import LoraConfig

HEAD = """# Settings

`python tools/config_reference.py` writes this page from the models that check the settings
(`s2video/config/sections.py`, `s2video/config/run.py`, `s2video/batch/run_file.py`), and a test keeps it current.
`s2video config` prints the same settings of a run, and `s2video config guidance.s2_scale` one of them.
`configs/shapes.yaml` is a file with all of them.

A config is a YAML file with these sections. A setting that it leaves out has its default. `--set guidance.s2_scale=0.3`
changes a setting for one run. In Python, use `s2video.load(..., guidance={"s2_scale": 0.3})`. Unknown keys, wrong types
and values out of bounds are refused in one line, with exit code 2.
"""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true, false", Fraction: "number, ratio", Any: "any"}


def reference() -> str:
    """The document, as Markdown."""
    own = [name for name in RunFile.model_fields if name not in RunConfig.model_fields]
    parts = [HEAD, *_section("A run", RunConfig, "", [n for n in RunConfig.model_fields if not _model(RunConfig, n)])]
    for name in RunConfig.model_fields:
        if (section := _model(RunConfig, name)) is not None:
            parts += _sections(name, section)
    parts += _section("`model.lora`, each", LoraConfig, "", list(LoraConfig.model_fields))
    parts += _section("A batch, in addition to all of these", RunFile, "", own)
    return "\n".join(parts)


def _sections(name: str, model: type[BaseModel]) -> Iterator[str]:
    """A section, and those within it."""
    yield from _section(f"`{name}`", model, f"{name}.", [key for key in model.model_fields if not _model(model, key)])
    for key in model.model_fields:
        if (inner := _model(model, key)) is not None:
            yield from _sections(f"{name}.{key}", inner)


def _section(title: str, model: type[BaseModel], prefix: str, names: list[str]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| setting | kind | default | meaning |\n|---|---|---|---|"
    for name in names:
        field = model.model_fields[name]
        default = "required" if field.is_required() else f"`{_value(field.default)}`"
        cells = (f"`{prefix}{name}`", _kind(field), default, field.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _kind(field: FieldInfo) -> str:
    """Words for what a field takes."""
    return _bounded(_words(field.annotation), field.metadata)


def _bounded(words: str, metadata: Iterable[Any]) -> str:
    """With the bounds that pydantic's metadata name."""
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
    return "mapping" if isinstance(kind, type) and issubclass(kind, BaseModel) else WORDS[kind]


def _value(value: Any) -> str:
    """As YAML has it."""
    return str(value) if isinstance(value, Fraction) or (isinstance(value, str) and value) else json.dumps(value)


if __name__ == "__main__":
    print(reference())

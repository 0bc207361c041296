"""From plain values, as YAML and JSON give them, to typed ones: strict types, and errors in plain words."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ValidationError

# YAML 1.1 takes a number for text unless it has both a dot and a signed exponent: 1e-4, 1e3, 1.0e3.
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
_NTSC_RATES = (24, 30, 48, 60, 120)
_LARGEST_RATE_PART = 1_001_000  # ffmpeg rounds a rate with a larger one
# Fraction would compute 1e999999999, for hours.
_RATE = re.compile(r"[-+]?\d{1,15}(\.\d{0,15})?([eE][-+]?\d{1,2}|/\d{1,15})?", re.ASCII)


def show(value: Any) -> str:
    """Return a value and its type for an error message, on one line, shortened."""
    kinds: list[tuple[Any, str]] = [
        (bool, "bool"),
        (int, "int"),
        (float, "float"),
        (str, "str"),
        (dict, "mapping"),
        ((list, tuple), "list"),
    ]
    if value is None:
        return "null"
    kind = next((name for of, name in kinds if isinstance(value, of)), type(value).__name__)
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({kind})"


def read_number(value: Any) -> float:
    """Return a finite float from an int, a float or text such as 1e-4; never from a bool."""
    written_as_text = isinstance(value, str) and _EXPONENT.fullmatch(value)
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or written_as_text):
        raise ValueError(f"expected a number, got {show(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {show(value)}")
    return number


def read_whole(value: Any) -> int:
    """Return an int from an int, or from a float (or text such as 1e3) without a fraction; never from a bool."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) or (isinstance(value, str) and _EXPONENT.fullmatch(value)):
        number = float(value)
        if number.is_integer():
            return int(number)
    raise ValueError(f"expected a whole number, got {show(value)}")


def read_text(value: Any) -> str:
    """Return text that can be encoded; refuse what YAML read as another type, with the advice to quote it."""
    if not isinstance(value, str):
        advice = 'write "" for empty text' if value is None else 'quote it, "like this"'
        raise ValueError(f"expected text, got {show(value)}: {advice}")
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
        raise ValueError(f"expected text without stray bytes or NUL, got {show(value)}")
    return value


def read_switch(value: Any) -> bool:
    """Return a bool; refuse what only looks like one."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {show(value)}")
    return value


def read_list(value: Any) -> tuple[Any, ...]:
    """Return a tuple from a list; its members are checked elsewhere."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list such as [0, 1], got {show(value)}")
    return tuple(value)


def read_fraction(value: Any) -> Fraction:
    """Return a positive ratio from an int, a float, "24000/1001" or "23.976".

    A rounded NTSC rate (23.976, 29.97, 59.94, …) means 24000/1001, 30000/1001, 60000/1001, …; any other float gets a
    denominator up to 1001.
    """
    advice = 'expected a frame rate such as 16, 23.976 or "24000/1001"'
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Fraction)):
        raise ValueError(f"{advice}, got {show(value)}")
    if isinstance(value, str) and not _RATE.fullmatch(value.strip()):
        raise ValueError(f"{advice}, got {show(value)}")
    try:
        rate = Fraction(value.strip() if isinstance(value, str) else value)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ValueError(f"{advice}, got {show(value)}") from None
    if isinstance(value, (float, str)) and (ntsc := _ntsc_rate(str(value))) is not None:
        return ntsc
    if isinstance(value, float):
        rate = rate.limit_denominator(1001)
    if rate <= 0:
        raise ValueError(f"{advice}, greater than 0, got {show(value)}")
    if max(rate.numerator, rate.denominator) > _LARGEST_RATE_PART:
        raise ValueError(f"{advice} with parts of at most {_LARGEST_RATE_PART}, got {show(value)}")
    return rate


def _ntsc_rate(text: str) -> Fraction | None:
    """Return n·1000/1001 if `text` is one of these rates of video, rounded to two or more decimals; else None."""
    match = re.fullmatch(r"\s*(\d+\.(\d{2,}))\s*", text, re.ASCII)
    if match is None:
        return None
    rates = (Fraction(whole * 1000, 1001) for whole in _NTSC_RATES)
    return next((rate for rate in rates if round(rate, len(match[2])) == Fraction(match[1])), None)


# What other programs call our settings, and what these names are nowhere near.
_OTHER_NAMES = {
    "steps": "sampling.num_inference_steps",
    "num_steps": "sampling.num_inference_steps",
    "sampling_steps": "sampling.num_inference_steps",
    "frames": "sampling.num_frames",
    "video_length": "sampling.num_frames",
    "shift": "sampling.flow_shift",
    "cfg": "guidance.cfg_scale",
    "guidance_scale": "guidance.cfg_scale",
    "guidance_scale_2": "guidance.cfg_scale_2",
    "cfg_rescale": "guidance.rescale",
    "guidance_rescale": "guidance.rescale",
    "omega": "guidance.s2_scale",
    "negative": "negative_prompt",
    "first_image": "image",
    "framerate": "output.fps",
    "frame_rate": "output.fps",
    "checkpoint_path": "model.path",
}


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every setting below `model`, sections included, as a dotted key."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")


MAX_KEY = 80  # characters that a key can have in common with ours


def near_key(key: str, model: type[BaseModel]) -> str | None:
    """Return the right key that a person meant by a wrong one, if another program's name or a likeness tells it."""
    key = key[:MAX_KEY]  # a comparison takes time with the square of the length

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(last, whole - 0.1) + whole / 100  # the last part counts most: a wrong section is a common slip

    keys = list(dotted_keys(model))
    meant = _OTHER_NAMES.get(key.rpartition(".")[2].lower().replace("-", "_"))
    if meant in keys:
        return meant
    sections = {candidate.rpartition(".")[0] for candidate in keys}
    likely = [k for k in keys if k not in sections or "." not in key]  # "sampling.qqq" is not a misspelt "sampling"
    best = max(likely, key=likeness)
    return best if likeness(best) >= 0.65 else None


def nearest_key(key: str, model: type[BaseModel]) -> str:
    """Return the end of an "unknown key" message: the nearest right key, or the keys of its section."""
    if (near := near_key(key, model)) is not None:
        return f": did you mean {near!r}?"
    keys = list(dotted_keys(model))
    section = key.rpartition(".")[0]
    siblings = [k for k in keys if k.rpartition(".")[0] == section] or [k for k in keys if "." not in k]
    return f": expected one of {', '.join(siblings)}"


def describe_problems(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the problems of a ValidationError on one line, each as "key: expected ..., got ..."."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            text = f"unknown key {key!r}{nearest_key(key, model)}"
        elif kind == "invalid_key":
            text = f"expected text as a key, got {key!r}: quote it"
        elif kind in ("model_type", "model_attributes_type", "dict_type"):
            text = f"{key}: expected a mapping of keys, got {show(value)}"
        elif kind == "literal_error":
            text = f"{key}: expected {context['expected']}, got {show(value)}"
        elif kind in _BOUNDS:
            text = f"{key}: expected a value {_BOUNDS[kind]} {_number(context)}, got {show(value)}"
        elif kind == "missing":
            *parents, last = (str(part) for part in problem["loc"])
            text = f"{'.'.join(parents)}: expected {'more values' if last.isdigit() else last}, got {show(value)}"
        elif kind == "too_long":
            text = f"{key}: expected {context['max_length']} values, got {show(value)}"
        elif kind == "string_too_short":
            text = f"{key}: expected text, got an empty text"
        else:
            text = f"{key}: {' '.join(problem['msg'].split()).removeprefix('Value error, ')}".removeprefix(": ")
        lines.append(text)
    return "; ".join(dict.fromkeys(lines))


_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def _number(context: dict[str, Any]) -> str:
    value = context.get("gt", context.get("ge", context.get("lt", context.get("le"))))
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The file of a resume point: what is in it, and whether it can be what a run wrote.

A safetensors file with tensors, and JSON in its header: `step`, `statement`, the attributes of `scheduler` and
`guidance`, the names of the `tensors`, and a `digest` of all of this. Knows neither ranks nor jobs.
"""

from __future__ import annotations

import copy
import dis
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError, S2VideoError
from ..system.json_reader import parse_json
from .sidecar import write_tensors
from .sidecar_model import METADATA_KEY

_MOST_TENSORS = 10_000
_NOT_STATE = frozenset({"_internal_dict"})  # the scheduler's config, which the statement has


class DamagedError(InputError):
    """Raised for a file that is no resume point, or not as a run wrote it."""


class SavedPoint(NamedTuple):
    """A run after `step` steps.

    Attributes:
        statement: what decides the latents, by field.
        scheduler: the attributes that differ from those before the first step: numbers, text, lists, or tensors.
        guidance: the state of the guidance, likewise.
        latents: float32 [B, C, T, H, W].
    """

    step: int
    statement: dict[str, Any]
    scheduler: dict[str, Any]
    guidance: dict[str, Any]
    latents: Tensor


def write_point(path: Path, point: SavedPoint) -> None:
    """Write the file atomically. Raises S2VideoError for state of a type that it cannot hold, or OSError."""
    tensors = {"latents": point.latents}
    facts = {
        "statement": point.statement,
        "step": point.step,
        "scheduler": encoded(point.scheduler, tensors),
        "guidance": encoded(point.guidance, tensors),
        "tensors": list(tensors),
    }
    tensors = {name: tensor.detach().to("cpu") for name, tensor in tensors.items()}
    write_tensors(path, tensors, facts | {"digest": _digest(facts, tensors)})


def read_point(path: Path) -> SavedPoint:
    """Read a file. Raises DamagedError for one that is no resume point, or has another digest than that of its content.

    Files of version 0.1.0 have no digest.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = parse_json((file.metadata() or {})[METADATA_KEY], "its header")
            names = facts["tensors"]
            if len(names) > _MOST_TENSORS or set(names) != set(file.keys()):
                raise ValueError("other tensors than its header names")
            tensors = {key: file.get_tensor(key) for key in names}
        if "digest" in facts and facts.pop("digest") != _digest(facts, tensors):
            raise ValueError("its content has changed since it was written")
        _move_guidance_state(facts)
        return SavedPoint(
            facts["step"],
            dict(facts["statement"]),
            {name: decoded(value, tensors) for name, value in facts["scheduler"].items()},
            {name: decoded(value, tensors) for name, value in facts["guidance"].items()},
            tensors["latents"],
        )
    except (SafetensorError, InputError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: expected a resume point of s2video ({error}); delete the file") from None


def check_point(path: Path, point: SavedPoint, scheduler: Any, noise: Tensor) -> None:
    """Check that a run of this job can have written a point.

    Args:
        scheduler: before its first step.
        noise: [B, C, T, H, W], where the job starts.

    Raises:
        DamagedError: steps, latents or attributes that the run cannot have.
    """
    if problem := _impossible(point, scheduler, noise):
        raise DamagedError(f"{path}: expected a resume point of this job, got {problem}; delete the file")


def _impossible(point: SavedPoint, scheduler: Any, noise: Tensor) -> str | None:
    num_steps = len(scheduler.timesteps)
    if type(point.step) is not int or not 1 <= point.step <= num_steps:
        return f"step {point.step!r}, which is not in 1 to {num_steps}"
    latents = point.latents
    if latents.shape != noise.shape or latents.dtype != noise.dtype:
        return f"latents {latents.dtype} {list(latents.shape)} instead of {noise.dtype} {list(noise.shape)}"
    if not bool(torch.isfinite(latents).all()):
        return "latents with NaN or infinity"
    if (index := point.scheduler.get("_step_index")) not in (None, point.step):
        return f"step {point.step} of a scheduler after step {index!r}"
    known = vars(scheduler).keys() | _assigned_attributes(scheduler.__class__)
    for name, value in point.scheduler.items():
        if name not in known or name in _NOT_STATE:
            return f"the attribute {name!r}, which {type(scheduler).__name__} does not have"
        if not _can_become(vars(scheduler).get(name), value):
            return f"{name} of type {type(value).__name__} in the scheduler's state"
    return _fails(point, scheduler) if point.step < num_steps else None


def _fails(point: SavedPoint, scheduler: Any) -> str | None:
    """Try a step on a copy of the scheduler: a value of the wrong type shows only there.

    Tensors are on the CPU here and the scheduler's can be on a GPU, so errors of devices (RuntimeError) say nothing.
    """
    tried = copy.deepcopy(scheduler)
    for name, value in point.scheduler.items():
        setattr(tried, name, copy.deepcopy(value))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            tried.step(torch.zeros_like(point.latents), tried.timesteps[point.step], point.latents)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        return f"a scheduler's state that its next step cannot use ({type(error).__name__}: {str(error)[:100]})"
    except (RuntimeError, ValueError):
        return None
    return None


def _can_become(fresh: Any, value: Any) -> bool:
    """Whether an attribute that has the value `fresh` before the first step can have `value` after some steps."""
    if isinstance(value, list):
        if isinstance(fresh, list) and len(fresh) not in (0, len(value)):
            return False  # a list that has places before the first step keeps them
        before = fresh or [None] * len(value)
        return isinstance(fresh, list | None) and all(map(_can_become, before, value))
    if fresh is None or value is None:
        return not isinstance(value, str)  # None is followed by numbers, tensors and lists of them
    if isinstance(fresh, float):
        return type(value) in (int, float)
    return isinstance(value, Tensor) if isinstance(fresh, Tensor) else type(value) is type(fresh)


@cache
def _assigned_attributes(kind: type) -> frozenset[str]:
    """The attributes that the methods of a class and of its bases assign: a scheduler makes some in its first step."""
    functions = (value for base in kind.__mro__ for value in vars(base).values() if isinstance(value, FunctionType))
    return frozenset(
        str(instruction.argval)
        for function in functions
        for code in _codes(function.__code__)
        for instruction in dis.get_instructions(code)
        if instruction.opname == "STORE_ATTR"
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def encoded(state: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return attributes as JSON, and add the tensors that it names to `tensors`. Raises S2VideoError for others."""

    def encode(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            key = f"scheduler.{len(tensors)}"
            tensors[key] = value
            return {"tensor": key}
        if isinstance(value, list | torch.Size):  # a shape, such as FlowMatchLCMScheduler keeps, comes back as a list
            return {"list": [encode(name, item) for item in value]}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise S2VideoError(
            f"the scheduler's state cannot be stored: expected numbers, text, tensors and lists, got {name} of type "
            f"{type(value).__name__}; run this scheduler without checkpoint.every_seconds"
        )

    return {name: encode(name, value) for name, value in state.items()}


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `encoded` was given. Raises KeyError, TypeError for something else."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return [decoded(item, tensors) for item in value["list"]]
    if isinstance(value, list):
        raise TypeError("a list without its mark")
    return value


def _move_guidance_state(facts: dict[str, Any]) -> None:
    """Older files kept the momentum of APG among the scheduler's attributes."""
    state = facts.setdefault("guidance", {})
    if "guidance_momentum" in facts["scheduler"]:
        state["momentum"] = facts["scheduler"].pop("guidance_momentum")


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header's JSON and of all tensors, with names, types and shapes."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Checkpoints from strangers: what their JSON may ask for, and one InputError for whatever a loader raises.

diffusers and transformers build what a config.json says, and believe it: 10⁹ layers take all memory, and a word where a
number belongs ends in any exception. Sizes are bounded before anything of that size is built. Imports no torch.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..errors import InputError, S2VideoError

MAX_SIZE = 10**8  # of a whole number in config.json: vocabularies, token ids, bases of rotary embeddings
MAX_LAYERS = 512  # the largest published model has 60
MAX_POSITIONS = 2**21
MAX_VALUES = 100_000  # in all of one config.json
_LAYERS = re.compile(r"(^|_)(layers|blocks|num_layers|depth|layers_per_block|res_blocks)(_|$)")
_POSITIONS = re.compile(r"(seq_len|max_position|positions|num_train_timesteps)")

P = ParamSpec("P")
T = TypeVar("T")


def check_bounds(values: Mapping[str, Any], path: Path) -> None:
    """Raise InputError unless the numbers of a config.json are of a size that a model can have.

    Looks at nested mappings and lists too.
    """
    level: list[tuple[str, Any]] = list(values.items())
    seen = 0
    while level:
        seen += len(level)
        if seen > MAX_VALUES:
            raise InputError(f"{path}: expected at most {MAX_VALUES} values, got more; download the file again")
        inner: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, dict):
                inner += value.items()
            elif isinstance(value, list):
                inner += [(key, item) for item in value]
            elif isinstance(value, int | float) and not abs(value) <= (most := _most(key)):
                raise InputError(f"{path}: {key}: expected at most {most}, got {value}; download the file again")
        level = inner


def check_latent_statistics(values: Mapping[str, Any], path: Path) -> None:
    """Raise InputError unless a VAE's config.json has usable statistics of its latents, which decoding needs."""
    for key, least in (("latents_mean", -math.inf), ("latents_std", 0.0), ("scaling_factor", 0.0)):
        if key not in values or (key == "scaling_factor" and "latents_mean" in values):
            continue  # diffusers' default
        found = values[key]
        numbers = found if isinstance(found, list) else [found] if key == "scaling_factor" else []
        are_usable = all(
            isinstance(n, int | float) and not isinstance(n, bool) and least < n < math.inf for n in numbers
        )
        expected = 1 if key == "scaling_factor" else values.get("z_dim", len(numbers))
        if not numbers or not are_usable or len(numbers) != expected:
            kind = f"{expected} finite numbers" if expected != 1 else "a finite number"
            above = " above 0" if least == 0 else ""
            raise InputError(f"{path}: {key}: expected {kind}{above}, got {str(found)[:60]}; download the file again")


def _most(key: str) -> float:
    if key == "model_max_length":  # of tokenizers: transformers writes 10³⁰ for no limit
        return math.inf
    if _LAYERS.search(key):
        return MAX_LAYERS
    return MAX_POSITIONS if _POSITIONS.search(key) else MAX_SIZE


def check_encoder(kind: Any, folder: Path, num_parameters: int) -> None:
    """Raise InputError if an encoder's config.json calls for many more parameters than its files have.

    transformers gives memory and random values to what the files lack, before anybody can see that it is missing.

    Args:
        kind: the encoder's class in transformers.
        num_parameters: those of its files; packed formats have fewer than the model, up to four times.
    """
    import torch

    config = kind.config_class.from_pretrained(folder)
    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in kind(config).parameters())
    if expected > 8 * num_parameters + 2**20:
        raise InputError(
            f"{folder}: expected about {expected} parameters, as config.json calls for, got files with "
            f"{num_parameters}; download the component again, whole"
        )


def one_line(component: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator of a function that loads a component: what diffusers or transformers raise becomes InputError.

    Args:
        component: which one it loads, unless its argument `component` or `name` says so. The function's first argument
            is the checkpoint.
    """

    def decorate(load: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(load)

        @functools.wraps(load)
        def loaded(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return load(*args, **kwargs)
            except BaseException as error:  # tokenizers, written in Rust, raise BaseException when they panic
                if not _is_foreign(error):
                    raise
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                given = bound.arguments
                name = given.get("component") or given.get("name") or component
                reason = (str(error).strip().splitlines() or [""])[0][:200].strip() or "no reason given"
                raise InputError(
                    f"{given['checkpoint'].folder / name}: its files cannot be used ({type(error).__name__}: "
                    f"{reason}); download the component again, whole"
                ) from error

        return loaded

    return decorate


def _is_foreign(error: BaseException) -> bool:
    """Whether an exception tells of a file's content, and not of this machine, this process or our own checks."""
    if isinstance(error, S2VideoError | MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"

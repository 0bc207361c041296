"""The blocks of a diffusers transformer, from the module itself: which lists hold them, and what each of them returns.

Diffusers names the lists alike in all its transformers, and each block returns its state under the names of its
arguments (`return hidden_states, encoder_hidden_states`). So no model has to be listed here. Knows neither pipelines
nor guidance.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from ..errors import InputError

# Lists through which the latents go. Others prepare text, control or references, and are part of every prediction.
_LISTS = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers", "visual_transformer_blocks")


def block_lists(transformer: Any) -> tuple[str, ...]:
    """Return the attributes that hold a transformer's blocks, in the order in which they run.

    Raises InputError if it has none, or if a block does not say what it returns.
    """
    children = transformer.named_children() if isinstance(transformer, nn.Module) else ()
    found = [(name, child) for name, child in children if name in _LISTS and isinstance(child, nn.ModuleList)]
    blocks = [block for _, child in found for block in child._modules.values()]
    if not blocks:
        raise InputError(
            f"S²-Guidance: expected a transformer with a list of blocks ({', '.join(_LISTS)}), got "
            f"{type(transformer).__name__}; use another model"
        )
    unknown = next((block for block in blocks if not _forms(_kind(block))), None)
    if unknown is not None:
        raise InputError(
            f"S²-Guidance: expected blocks that return some of their arguments by name, got {_kind(unknown).__name__} "
            f"in {type(transformer).__name__}; use another model"
        )
    return tuple(name for name, _ in found)


def count_blocks(transformer: Any) -> int:
    """Return the number of blocks in all lists. Raises InputError for a model without them."""
    return sum(len(getattr(transformer, name)) for name in block_lists(transformer))


def count_returned(block: nn.Module, output: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> int:
    """Return how many values a block returned. Raises InputError if they are not new states of its arguments."""
    values = output if isinstance(output, tuple) else (output,)
    if len(values) in _forms(_kind(block)):
        state = state_of(block, len(values), arguments, keywords)
        if all(_shape(new) in (_shape(old), None) for new, old in zip(values, state, strict=True)):
            return len(values)
    raise InputError(
        f"S²-Guidance: expected a block that returns its arguments in a new state, got {_kind(block).__name__}, which "
        "returned other shapes; use another model"
    )


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def state_of(block: nn.Module, count: int, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return those arguments of a block's call that the block returns in another state, in the order of its returns.

    Args:
        count: how many values it returns in this call.
    """
    kind = _kind(block)
    positions = _parameters(kind)
    names = _forms(kind)[count]
    return tuple(keywords[name] if name in keywords else arguments[positions.index(name)] for name in names)


def as_returned(state: tuple[Any, ...]) -> Any:
    """Return a state as a block returns it: alone, or as a tuple of several tensors."""
    return state if len(state) > 1 else state[0]


def _kind(block: nn.Module) -> type:
    """Return a block's class, also if the block was compiled."""
    return type(getattr(block, "_orig_mod", block))


@cache
def _parameters(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


@cache
def _forms(kind: Any) -> dict[int, tuple[str, ...]]:
    """Return the names that a block's `forward` returns, by their number. A block can have several forms.

    A block that returns something computed, without a name, returns its first argument's state.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[int, tuple[str, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            names = tuple(value.id for value in values if isinstance(value, ast.Name))
            if len(names) == len(values) and set(names) <= set(_parameters(kind)):
                found[len(names)] = names
            elif not isinstance(node.value, ast.Tuple | ast.Name):
                found.setdefault(1, _parameters(kind)[:1])
    return found

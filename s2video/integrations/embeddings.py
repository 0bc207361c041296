"""Which rows of a transformer's call are cond, found by the embeddings that the pipeline's own encoding returned.

For pipelines that do not name their calls. A call is cond if its text is the prompt's embeddings, to the bit; calls are
never counted. Knows no pipeline by name.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import InputError

Rows = tuple[bool, ...]


@dataclass
class PromptEmbeddings:
    """The embeddings of one call of a pipeline.

    Attributes:
        arguments: the pipeline's arguments, by name.
        cond: embeddings of the prompt: a row for each sample.
        others: all other tensors that the encoding returned, among them the embeddings of the negative prompt.
    """

    arguments: Mapping[str, Any]
    cond: list[Sequence[Tensor]] = field(default_factory=list)
    others: list[Sequence[Tensor]] = field(default_factory=list)
    _given: list[Sequence[Tensor]] = field(default_factory=list)  # by the user; some pipelines do not encode them

    def __post_init__(self) -> None:
        for name, value in self.arguments.items():
            if "prompt_embeds" in name and not name.startswith("pooled"):
                (self.others if name.startswith("negative") else self._given).extend(_rows(value))

    def encoded(self, encode: Callable[..., Any], returned: Any, arguments: Any, keywords: Any) -> None:
        """Note what a call of the pipeline's `encode_prompt` returned: first the prompt's embeddings, then others."""
        values = returned if isinstance(returned, tuple) else (returned,)
        bound = inspect.signature(encode).bind_partial(*arguments, **keywords).arguments
        first, rest = values[:1], values[1:]
        if self._is_negative(bound):
            first, rest = (), values
        self.cond.extend(rows for value in first for rows in _rows(value))
        self.others.extend(rows for value in rest for rows in _rows(value) if rows[0].ndim > 1)  # no masks

    def _is_negative(self, bound: Mapping[str, Any]) -> bool:
        """Return whether a call of `encode_prompt` is for the negative prompt, in pipelines with a call for each."""
        if self._is_of(bound, ""):
            return False
        return self._is_of(bound, "negative_") or bool(self.cond)

    def _is_of(self, bound: Mapping[str, Any], prefix: str) -> bool:
        embeds, text = bound.get("prompt_embeds"), bound.get("prompt")
        if embeds is not None:
            return embeds is self.arguments.get(f"{prefix}prompt_embeds")
        return text is not None and _texts(text) == _texts(self.arguments.get(f"{prefix}prompt"))

    def rows(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Rows | None:
        """Return which chunks of a call's batch are cond; None if none of its arguments is a known embedding."""
        values = [rows for value in (*keywords.values(), *arguments) for rows in _rows(value)]
        for known in self.cond or self._given:
            for rows in values:
                chunks = _chunks(rows, len(known))
                found = tuple(_are_equal(chunk, known) for chunk in chunks)
                if any(found):
                    return found
        return (False,) if any(_are_equal(rows, other) for rows in values for other in self.others) else None


def _chunks(rows: Sequence[Tensor], size: int) -> list[Sequence[Tensor]]:
    """Return the parts of a batch, if it can be divided into parts of this size."""
    return [rows[start : start + size] for start in range(0, len(rows), size)] if len(rows) % size == 0 else []


def refuse_same() -> NoReturn:
    """Refuse a step that has the prompt's embeddings more than once."""
    raise InputError(
        "S²-Guidance: expected a prompt and a negative prompt that differ, got the same embeddings for both, so cond "
        "cannot be told from uncond; change the negative prompt, or turn off the pipeline's own guidance"
    )


def refuse_unknown(name: str) -> NoReturn:
    """Refuse a call that has none of the embeddings."""
    raise InputError(
        f"S²-Guidance: expected calls of the transformer with the embeddings that {name} encoded, got others, so it is "
        "unknown which call is cond; do not change the embeddings during the call, or call s2video.disable(pipe)"
    )


def _rows(value: Any) -> Iterator[Sequence[Tensor]]:
    """Yield the value's rows, if it can be embeddings: [B, ...], or a list with a tensor for each sample."""
    if isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point():
        yield list(value)
    elif isinstance(value, list) and value and all(isinstance(row, Tensor) for row in value):
        yield value


def _are_equal(rows: Sequence[Tensor], known: Sequence[Tensor]) -> bool:
    return len(rows) == len(known) and all(map(_is_equal, rows, known))


def _is_equal(row: Tensor, known: Tensor) -> bool:
    row, known = row.squeeze(), known.squeeze()  # Allegro adds a dimension
    return row.shape == known.shape and torch.equal(row, known.to(row.device, row.dtype))


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value

"""What a transformer returns, as one tensor: a prediction with a row for each sample.

A transformer returns one tensor, a list with a tensor for each sample (Z-Image), or several tensors, one for each
modality (LTX-2: video and audio). Modalities are joined, because one mask makes one sub prediction of all of them.
"""

from typing import Any

import torch
from torch import Tensor


def prediction(output: Any) -> Tensor:
    """Return the prediction of a transformer's output: [B, ...], or [B, N] if several modalities are joined."""
    parts = [_stacked(part) for part in _parts(output)]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)


def with_prediction(output: Any, values: Tensor) -> Any:
    """Return an output like `output`, with its shapes and dtypes, that has another prediction."""
    if isinstance(output, Tensor):
        return values.to(output.dtype)
    parts = _parts(output)
    sizes = [_stacked(part)[0].numel() for part in parts]
    flat = iter(values.flatten(1).split(sizes, dim=1))
    replaced = [_like(item, next(flat)) if _is_part(item) else item for item in _items(output)]
    return type(output)(**dict(zip(output, replaced, strict=True))) if isinstance(output, dict) else tuple(replaced)


def _items(output: Any) -> list[Any]:
    if isinstance(output, Tensor):
        return [output]
    return list(output.values()) if isinstance(output, dict) else list(output)


def _parts(output: Any) -> list[Any]:
    return [item for item in _items(output) if _is_part(item)]


def _is_part(item: Any) -> bool:
    return isinstance(item, Tensor) or (isinstance(item, list) and bool(item) and isinstance(item[0], Tensor))


def _stacked(part: Any) -> Tensor:
    return part if isinstance(part, Tensor) else torch.stack(part)


def _like(part: Any, values: Tensor) -> Any:
    if isinstance(part, Tensor):
        return values.reshape(part.shape).to(part.dtype)
    return [row.reshape(own.shape).to(own.dtype) for own, row in zip(part, values, strict=True)]

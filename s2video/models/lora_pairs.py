"""The pairs of matrices in a LoRA file, held against each other before peft gets them.

Letters: r rank, i inputs of a layer, o its outputs. A [r, i] and B [o, r] belong to one layer; the change is B A.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import torch

_A, _B = ".lora_A.weight", ".lora_B.weight"


def check_pairs(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError for a LoRA whose matrices do not belong together, or have no finite values.

    Args:
        path: its file, for the message.
        state: tensors by diffusers' names; keys of other kinds, such as biases, only need finite values.
    """
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise _refused(path, key, "finite values", "NaN or infinite ones")
        layer = key.removesuffix(_A).removesuffix(_B)
        if layer == key:
            continue
        if (other := layer + (_B if key.endswith(_A) else _A)) not in state:
            raise _refused(path, key, f"{other} too", "one of the pair")
        if not key.endswith(_A):
            continue
        a, b = value, state[other]
        if a.ndim != b.ndim or a.ndim < 2:
            raise _refused(path, key, "two matrices", f"A {list(a.shape)} and B {list(b.shape)}")
        if a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise _refused(path, key, "A [r, i] and B [o, r] of one rank r > 0", f"{list(a.shape)} and {list(b.shape)}")


def _refused(path: Path, key: str, expected: str, got: str) -> InputError:
    return InputError(f"model.lora: {path}: {key}: expected {expected}, got {got}; use a file that is whole")

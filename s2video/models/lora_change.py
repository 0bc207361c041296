"""The change that a layer of a LoRA file makes to a weight, a bias or a table, computed in float32.

    LoRA    ΔW = (α / r) · B A
    LoHa    ΔW = (α / r) · (w1_a w1_b) ∘ (w2_a w2_b)
    LoKr    ΔW = (α / r) · w1 ⊗ w2, where each can be a product of two; α counts only if one is
    DoRA    ΔW = m · (W + ΔW') / ‖W + ΔW'‖ − W, with LoRA's ΔW' and the norm of each row (or column)

Shapes: W [out, in, ...], A [r, in, ...], B [out, r]; α is the file's, or r if it has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .lora_format import Layer, LoraFile, Target

_PAIRS = (("A", "B"), *((f"{name}_b", f"{name}_a") for name in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2")))


def check_layer(file: LoraFile, layer: Layer) -> None:
    """Raise InputError for values that are not finite, half of a pair, other ranks, or an alpha of many numbers."""
    tensors = layer.tensors
    for role, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise _refused(file, layer, role, "finite values", "NaN or infinite ones")
    for down, up in _PAIRS:
        if (down in tensors) != (up in tensors):
            there, other = (down, up) if down in tensors else (up, down)
            raise _refused(file, layer, there, f"{other} too", "one of the pair")
        if down not in tensors:
            continue
        a, b = tensors[down], tensors[up]
        if a.ndim < 2 or b.ndim < 2 or (down == "A" and a.ndim != b.ndim):
            raise _refused(file, layer, down, "two matrices", f"{list(a.shape)} and {list(b.shape)}")
        if a.shape[0] != b.shape[1] or a.shape[0] == 0:
            expected = "A [r, i] and B [o, r] of one rank r > 0"
            raise _refused(file, layer, down, expected, f"{list(a.shape)} and {list(b.shape)}")
    if (alpha := tensors.get("alpha")) is not None and alpha.numel() != 1:
        raise _refused(file, layer, "alpha", "one number", f"shape {list(alpha.shape)}")


def _refused(file: LoraFile, layer: Layer, role: str, expected: str, got: str) -> InputError:
    return InputError(
        f"model.lora: {file.path}: {layer.keys[role]}: expected {expected}, got {got}; use a file that is whole"
    )


def strength(file: LoraFile, layer: Layer) -> float:
    """Return α / r of a layer: from its own alpha, else from PEFT's settings, else 1."""
    rank = _rank(layer)
    if rank is None:
        return 1.0
    if "alpha" in layer.tensors:
        return float(layer.tensors["alpha"].float().item()) / rank
    alpha = file.settings.get("lora_alpha")
    patterns = file.settings.get("alpha_pattern")
    for name, value in patterns.items() if isinstance(patterns, dict) else ():
        if layer.name == name or layer.name.endswith(f".{str(name).lstrip('^')}"):
            alpha = value
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return 1.0
    return float(alpha) / (math.sqrt(rank) if file.settings.get("use_rslora") is True else rank)


def _rank(layer: Layer) -> int | None:
    for role, dim in (("A", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if role in layer.tensors:
            return int(layer.tensors[role].shape[dim])
    return None


def is_pair(target: Target) -> bool:
    """Whether a change is a plain LoRA of a matrix, which PEFT applies beside the weights."""
    roles = target.layer.tensors.keys()
    return target.parameter.endswith(".weight") and {"A", "B"} <= roles and not roles & {"magnitude", "diff"}


def change_of(file: LoraFile, target: Target, parameter: Tensor) -> Tensor:
    """Return what is added to a parameter at scale 1: float32, in the parameter's shape.

    Raises:
        ValueError: if the change has another shape; the message gives both.
    """
    layer = target.layer
    if target.parameter.endswith(".bias"):
        parts = [layer.tensors[role].float() for role in ("diff_b", "B_bias") if role in layer.tensors]
        if "B_bias" in layer.tensors:
            parts[-1] = parts[-1] * strength(file, layer)
        change = sum(parts[1:], parts[0])
    elif target.parameter.endswith("scale_shift_table"):
        change = layer.tensors.get("diff_m", layer.tensors.get("diff", torch.empty(0))).float()
    else:
        change = _of_weight(file, layer)
    change = change if target.rows is None else change[target.rows.to(change.device)]
    change = _fitted(change, parameter)
    if "magnitude" in layer.tensors and target.parameter.endswith(".weight"):
        change = _decomposed(change, target, parameter)
    return change


def _of_weight(file: LoraFile, layer: Layer) -> Tensor:
    tensors = {role: value.float() for role, value in layer.tensors.items()}
    parts = [tensors["diff"]] if "diff" in tensors else []
    scale = strength(file, layer)
    if "A" in tensors:
        up, down = tensors["B"], tensors["A"]
        parts.append(scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:]))
    if "hada_w1_a" in tensors:
        first = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
        parts.append(scale * first * (tensors["hada_w2_a"] @ tensors["hada_w2_b"]))
    if any(role.startswith("lokr") for role in tensors):
        parts.append(scale * torch.kron(_factor(tensors, "lokr_w1"), _factor(tensors, "lokr_w2")))
    return sum(parts[1:], parts[0])


def _factor(tensors: dict[str, Tensor], name: str) -> Tensor:
    return tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]


def _fitted(change: Tensor, parameter: Tensor) -> Tensor:
    if change.shape != parameter.shape and change.numel() == parameter.numel() and len(change) == len(parameter):
        return change.reshape(parameter.shape)  # a convolution written as a matrix
    if change.shape != parameter.shape:
        raise ValueError(f"shape {list(change.shape)} instead of {list(parameter.shape)}")
    return change


def _decomposed(change: Tensor, target: Target, weight: Tensor) -> Tensor:
    """DoRA's change, from LoRA's. The magnitude has one number for each row, or for each column."""
    whole = weight.detach().to(change.device, torch.float32)
    moved = (whole + change).flatten(1)
    stored = target.layer.tensors["magnitude"].float()
    magnitude, is_by_column = stored.flatten(), stored.ndim > 1 and stored.shape[0] == 1
    if is_by_column and len(magnitude) == moved.shape[1] and target.rows is None:
        scaled = moved * (magnitude / moved.norm(dim=0)).unsqueeze(0)
    elif not is_by_column and len(magnitude if target.rows is None else target.rows) == len(moved):
        magnitude = magnitude if target.rows is None else magnitude[target.rows]
        scaled = moved * (magnitude / moved.norm(dim=1)).unsqueeze(1)
    else:
        raise ValueError(f"magnitudes of shape {list(stored.shape)} for {list(weight.shape)}")
    return scaled.view(weight.shape) - whole


def pair_of(file: LoraFile, target: Target) -> tuple[Tensor, Tensor, float]:
    """Return A, B and the strength that PEFT has to give them.

    A file's own alpha is multiplied into the matrices, half of it into each if it is small, as diffusers does it.
    """
    down, up = target.layer.tensors["A"], target.layer.tensors["B"]
    up = up if target.rows is None else up[target.rows].contiguous()
    if "alpha" not in target.layer.tensors:
        return down, up, strength(file, target.layer)
    for_down, for_up = strength(file, target.layer), 1.0
    while 0 < for_down * 2 < for_up:
        for_down, for_up = for_down * 2, for_up / 2
    return down * for_down, up * for_up, 1.0


def peft_settings(pairs: Mapping[str, tuple[Tensor, Tensor, float]]) -> dict[str, Any]:
    """Return PEFT's settings for layers -> `pair_of`: each layer with its own rank and alpha, by its exact name."""
    ranks = {f"^{re.escape(name)}": int(down.shape[0]) for name, (down, _, _) in pairs.items()}
    alphas = {f"^{re.escape(name)}": scale * down.shape[0] for name, (down, _, scale) in pairs.items()}
    first = next(iter(ranks))
    return {
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": list(pairs),
    }

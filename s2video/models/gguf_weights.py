"""Weights of GGUF files that stay in memory as they are stored (`model.quantization: gguf`), by diffusers' quantiser.

A linear layer of a block then dequantises its weight each time it runs, in float16. Everything else is dequantised when
it is loaded. Imports torch and diffusers only to use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .gguf_header import BLOCKS
from .weight_files import WeightFile

if TYPE_CHECKING:
    import torch

    from .layout import Layout

GGUF = "gguf"  # the value of `model.quantization`


def check_gguf(files: Sequence[WeightFile], component: str, class_name: str) -> None:
    """Raise InputError unless the weights of a transformer can be used as they are stored. The package must be there.

    Args:
        class_name: the transformer's class in diffusers.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    stored = _stored_kinds(files, component)
    if class_name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise InputError(
            f"model.quantization: gguf needs a model that diffusers loads from single files, got {class_name}; "
            "leave it out"
        )
    if unknown := sorted(stored - {number.name for number in SUPPORTED_GGUF_QUANT_TYPES}):
        raise InputError(
            f"{files[0].path}: model.quantization: gguf needs types that diffusers can compute with, got "
            f"{', '.join(unknown)}; leave it out, or take a Q8_0, Q4_K or similar file"
        )


def bytes_per_weight(files: Sequence[WeightFile], component: str, item_bytes: int) -> float:
    """Return the mean bytes in memory of a number in a matrix. Raises InputError if nothing would stay as it is stored.

    Args:
        item_bytes: those of a number in `model.dtype`, in which plain matrices are.
    """
    _stored_kinds(files, component)
    numbers = total = 0.0
    for file in files:
        for entry in file.tensors.values():
            if len(entry["shape"]) == 2:
                count, (start, stop) = entry["shape"][0] * entry["shape"][1], entry["data_offsets"]
                numbers += count
                total += stop - start if _is_packed(entry["dtype"]) else count * item_bytes
    return total / numbers


def _stored_kinds(files: Sequence[WeightFile], component: str) -> set[str]:
    """Return the types of a component's quantised tensors. Raises InputError if it has none."""
    kinds = {str(entry["dtype"]) for file in files if file.is_gguf for entry in file.tensors.values()}
    if not (packed := {kind for kind in kinds if _is_packed(kind)}):
        forms = ", ".join(sorted(kinds)) if kinds else "safetensors"
        raise InputError(
            f"{files[0].path}: model.quantization: gguf needs quantised weights in a GGUF file, got {forms}; set "
            f"model.{component} to such a file, or leave model.quantization out"
        )
    return packed


def _is_packed(kind: str) -> bool:
    return kind in BLOCKS and BLOCKS[kind][0] > 1


def load_gguf(
    empty: Any, layout: Layout, folder: Path, block_lists: Sequence[str], dtype: torch.dtype, device: torch.device
) -> tuple[Any, str]:
    """Return a transformer whose blocks keep their matrices as they are stored, and what the sidecar says about it.

    Args:
        empty: the module without memory; it stays so.
        layout: where its tensors are.
        folder: the one with its config.json.
        block_lists: names of its lists of blocks.
        dtype: of the other parameters and of all arithmetic.

    Raises:
        InputError: no matrix would stay as it is stored.
    """
    import gguf
    from diffusers import GGUFQuantizationConfig
    from diffusers.quantizers.gguf.utils import GGUFParameter
    from torch import nn

    inside = tuple(f"{name}." for name in block_lists)
    in_float32 = set(empty._keep_in_fp32_modules or ())
    linear = {
        f"{path}.weight"
        for path, module in empty.named_modules()
        if isinstance(module, nn.Linear) and path.startswith(inside) and not in_float32 & set(path.split("."))
    }
    stored = {name: found for name in sorted(linear) if (found := layout.packed(name)) is not None}
    if not stored:
        raise InputError(
            f"{folder}: model.quantization: gguf needs matrices of blocks whose rows are whole blocks of GGUF, got "
            f"none in the file ({layout.description}); leave it out"
        )
    state: dict[str, torch.Tensor] = {
        name: GGUFParameter(data, quant_type=gguf.GGMLQuantizationType[kind]) for name, (kind, data) in stored.items()
    }
    state |= {name: layout.tensor(name) for name in layout.shapes if name not in stored}
    model = type(empty).from_single_file(
        state,
        config=str(folder),
        local_files_only=True,
        quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
        dtype=dtype,
        device=device,
    )
    kept = f"GGUF, {len(stored)} linear layers of blocks kept as stored, by diffusers {version('diffusers')}"
    return model, layout.description.replace("GGUF, dequantized", kept)

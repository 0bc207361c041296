"""Where each tensor of a component is in its weight files, and how it is read from there.

A layout is made from headers alone and is held against the module before anything is read. Values come out as the
module needs them: fp8 weights multiplied by their scales, GGUF blocks dequantized, both in float32. Does not know
placement: a rank asks for the elements that it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import InputError
from .conversion import Rows, converter_for, strip_prefix, trace
from .formats import formats_of
from .gguf_header import BLOCKS
from .weight_files import WeightFile

_SCALES = ("scale_weight", "weight_scale")  # of the tensor `weight` next to it, in ComfyUI's two forms
_UNUSED = ("scale_input", "input_scale", "comfy_quant")  # for arithmetic in fp8, which is not done here
_FP8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file, and the tensor of its scale: one number, or one for each row."""

    file: WeightFile
    name: str
    scale: tuple[WeightFile, str] | None = None

    @property
    def entry(self) -> Mapping[str, Any]:
        return self.file.tensors[self.name]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.entry["shape"])


class Layout:
    """The tensors of one component, under the names of its module.

    Attributes:
        shapes: names -> shapes.
        dtypes: names -> the formats in which they are stored, as the files name them.
        is_plain: whether every tensor is stored under its own name, as it is.
        description: the formats and what was converted, for the sidecar; empty if it is plain.
    """

    def __init__(self, stored: Mapping[str, _Stored], rows: Mapping[str, Sequence[Rows]], how: Sequence[str]) -> None:
        self._stored = stored
        self._rows = {name: [run for run in runs if run.last > run.first] for name, runs in rows.items()}
        first = {name: stored[runs[0].source] for name, runs in rows.items()}
        self.shapes = {
            name: (sum(run.last - run.first for run in runs), *first[name].shape[1:]) if first[name].shape else ()
            for name, runs in rows.items()
        }
        self.dtypes = {name: str(found.entry["dtype"]) for name, found in first.items()}
        self.is_plain = not how
        self.description = "; ".join(how)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements `start` … `stop` of the flattened tensor, reading little more. The caller must copy.

        Opens files for each read, because the pages of an open file count as this process's memory.
        """
        width = math.prod(self.shapes[name][1:])
        parts, offset = [], 0
        for run in self._rows[name]:
            size = (run.last - run.first) * width
            first, last = max(start - offset, 0), min(stop - offset, size)
            if first < last:
                begin = run.first * width
                parts.append(_elements(self._stored[run.source], begin + first, begin + last))
            offset += size
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0)

    def packed(self, name: str) -> tuple[str, Tensor] | None:
        """Return a matrix as GGUF stores it: its type, and its rows as uint8 [rows, bytes]; None if it is plain.

        Also None if it is stored in blocks that do not end with its rows.
        """
        stored = [self._stored[run.source] for run in self._rows[name]]
        kind, shape = str(stored[0].entry["dtype"]), self.shapes[name]
        is_one = all(found.file.is_gguf and found.entry["dtype"] == kind for found in stored)
        if not is_one or len(shape) != 2 or BLOCKS[kind][0] == 1 or shape[1] % BLOCKS[kind][0]:
            return None
        numbers, size = BLOCKS[kind]
        each = shape[1] // numbers
        runs = zip(self._rows[name], stored, strict=True)
        content = b"".join(_blocks(found, run.first * each, run.last * each) for run, found in runs)
        return kind, torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape[0], each * size)

    def tensor(self, name: str) -> Tensor:
        """Return a whole tensor, in its stored precision, or in float32 if it was quantized."""
        shape = self.shapes[name]
        return self.read(name, 0, math.prod(shape)).view(shape)


def read_layout(
    files: Sequence[WeightFile], component: str, class_name: str, config: Mapping[str, Any], wanted: Collection[str]
) -> Layout:
    """Return where the tensors of a component are.

    Args:
        class_name: the component's class in diffusers or transformers.
        config: its config.json.
        wanted: the names of the module's tensors. If most of the files' names are not among them, they are converted.

    Raises:
        InputError: a tensor is in two files, a scale does not fit, or names cannot be converted.
    """
    source = files[0].path if len(files) == 1 else files[0].path.parent
    stored: dict[str, _Stored] = {}
    for file in files:
        for name in file.tensors:
            if name in stored:
                raise InputError(f"{file.path}: {name} is in {stored[name].file.path.name} too; keep one of the files")
            stored[name] = _Stored(file, name)
    plain = strip_prefix(list(stored), component)
    how = [] if all(name == full for name, full in plain.items()) and len(plain) == len(stored) else ["prefixed names"]
    named, scaled = _with_scales({name: stored[full] for name, full in plain.items()}, source)
    if scaled:
        how.append(f"{scaled} fp8 tensors with scales, dequantized")
    if any(file.is_gguf for file in files):
        how.append("GGUF, dequantized")
    rows = {name: [Rows(name, 0, _num_rows(found))] for name, found in named.items()}
    known = sum(name in wanted for name in named)
    convert = converter_for(class_name, config) if known < len(named) / 2 else None
    if convert is not None:
        rows = trace({name: _num_rows(found) for name, found in named.items()}, convert, source)
        how.append("original names, converted")
    return Layout(named, rows, [*how, f"stored as {formats_of(files)}"] if how else [])


def _with_scales(named: dict[str, _Stored], source: object) -> tuple[dict[str, _Stored], int]:
    """Join fp8 weights with their scales, and leave out what only fp8 arithmetic needs. Also return their number."""
    kept, scaled = dict(named), 0
    for name, found in named.items():
        layer, _, kind = name.rpartition(".")
        weight = named.get(f"{layer}.weight")
        if name == "scaled_fp8" or (kind in _UNUSED and weight is not None):
            del kept[name]
        elif kind in _SCALES and weight is not None and weight.entry["dtype"] in _FP8:
            if f"{layer}.weight_scale_2" in named or not _fits(found.shape, weight.shape):
                raise InputError(
                    f"{source}: {name}: expected one scale, or one for each of {weight.shape[0]} rows, got shape "
                    f"{list(found.shape)}, which is not supported; take a file with scaled fp8 or GGUF, or in bfloat16"
                )
            kept[f"{layer}.weight"] = _Stored(weight.file, weight.name, (found.file, found.name))
            del kept[name]
            scaled += 1
    return kept, scaled


def _fits(scale: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    return math.prod(scale) == 1 or (scale[0] == weight[0] == math.prod(scale))


def _num_rows(stored: _Stored) -> int:
    return stored.shape[0] if stored.shape else 1


def _elements(stored: _Stored, start: int, stop: int) -> Tensor:
    """Elements `start` … `stop` of a flattened stored tensor."""
    if stored.file.is_gguf:
        return _from_blocks(stored, start, stop)
    width = math.prod(stored.shape[1:])
    first, last = start // width, -(-stop // width)
    with safe_open(stored.file.path, framework="pt") as file:
        rows: Tensor = file.get_slice(stored.name)[first:last] if stored.shape else file.get_tensor(stored.name)
    if stored.scale is not None:
        scale = _scale(stored.scale)
        scale = scale if scale.numel() == 1 else scale[first:last]
        rows = rows.float() * scale.view(-1, *[1] * (rows.ndim - 1))
    return rows.flatten()[start - first * width : stop - first * width]


def _scale(place: tuple[WeightFile, str]) -> Tensor:
    file, name = place
    with safe_open(file.path, framework="pt") as opened:
        scale: Tensor = opened.get_tensor(name)
    return scale.float().flatten()


def _from_blocks(stored: _Stored, start: int, stop: int) -> Tensor:
    """Read and dequantize the blocks of a GGUF tensor that hold these elements."""
    kind = str(stored.entry["dtype"])
    numbers, _ = BLOCKS[kind]
    first, last = start // numbers, -(-stop // numbers)
    content = _blocks(stored, first, last)
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind in plain:
        return torch.frombuffer(bytearray(content), dtype=plain[kind])
    import numpy as np

    gguf = require_gguf(stored.file.path)
    blocks = np.frombuffer(content, np.uint8).reshape(1, -1)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values)).flatten()[start - first * numbers : stop - first * numbers]


def _blocks(stored: _Stored, first: int, last: int) -> bytes:
    """Read blocks `first` … `last` of a GGUF tensor."""
    _, size = BLOCKS[str(stored.entry["dtype"])]
    with stored.file.path.open("rb") as file:
        file.seek(stored.entry["data_offsets"][0] + first * size)
        return file.read((last - first) * size)


def require_gguf(path: object) -> Any:
    """Return the gguf package. Raises InputError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError(
            f"{path}: expected the package gguf to be installed, got none; pip install 's2video[gguf]'"
        ) from None
    return gguf


def whole_state(layout: Layout) -> dict[str, Tensor]:
    """Return all tensors of a layout."""
    return dict(_tensors(layout))


def _tensors(layout: Layout) -> Iterator[tuple[str, Tensor]]:
    for name in layout.shapes:
        yield name, layout.tensor(name)

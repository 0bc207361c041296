"""The header of a GGUF file: names, shapes, types and places of its tensors. Reads no weights.

The format is that of ggml (versions 2 and 3, little-endian). Everything that the header says is bounded by the size of
the file, so a damaged one ends in one error. Imports neither torch nor the gguf package.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InputError

MAGIC = b"GGUF"
BLOCKS = {
    # type: (numbers in a block, bytes of a block), as ggml's type_traits has them
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
}
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K"}
_TYPES |= {12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"}
_TYPES |= {20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16"}
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_MAX_DIMS = 8
_SHAPE_KEY = "comfy.gguf.orig_shape."  # the shape of a tensor that ComfyUI's converter stores in rows of 256 numbers


Tensors: TypeAlias = dict[str, dict[str, Any]]


def read_gguf_header(path: Path) -> Tensors:
    """Return name -> "dtype" (a name of `BLOCKS`), "shape" (as torch has it) and "data_offsets" (in the file, bytes).

    Raises:
        InputError: a file that is damaged, incomplete, or has a type that is not known.
    """
    damaged = InputError(f"{path}: not a GGUF file, or an incomplete or damaged one; download it again")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _header(_Cursor(content), path)
    except (struct.error, ValueError, UnicodeDecodeError, IndexError, OSError):
        raise damaged from None


class _Cursor:
    """Reads values one after another; a read beyond the end raises struct.error."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.position = 0

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.content, self.position)
        self.position += struct.calcsize(f"<{kind}")
        return value

    def count(self, each: int) -> int:
        """A number of things that take at least `each` bytes of the rest of the file."""
        value = int(self.number("Q"))
        if value * each > len(self.content) - self.position:
            raise ValueError("more than the file holds")
        return value

    def text(self) -> str:
        length = self.count(1)
        self.position += length
        return self.content[self.position - length : self.position].decode("utf-8")

    def value(self, kind: int, *, nested: bool = False) -> Any:
        """A metadata value; of an array of text only the place is moved."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or nested:
            raise ValueError(f"a value of type {kind}")
        inner = int(self.number("I"))
        if inner in _NUMBERS:
            size = struct.calcsize(f"<{_NUMBERS[inner]}")
            count = self.count(size)
            first = self.position
            self.position += count * size
            return struct.unpack_from(f"<{count}{_NUMBERS[inner]}", self.content, first) if count <= _MAX_DIMS else None
        for _ in range(self.count(8)):
            self.value(inner, nested=True)
        return None


def _header(cursor: _Cursor, path: Path) -> Tensors:
    if cursor.content[:4] != MAGIC:
        raise ValueError("no GGUF")
    cursor.position = 4
    if (version := cursor.number("I")) not in (2, 3):
        raise InputError(f"{path}: expected GGUF version 2 or 3, little-endian, got {version}; convert the file again")
    num_tensors, num_values = cursor.count(24), cursor.count(12)
    metadata = {}
    for _ in range(num_values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    entries = [_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise ValueError("alignment")
    start = -(-cursor.position // alignment) * alignment
    tensors: Tensors = {}
    for name, stored, kind, offset in entries:
        if kind not in _TYPES:
            raise InputError(f"{path}: {name}: GGUF type {kind} is not supported; take a Q8_0, Q4_K or similar file")
        tensors[name] = _placed(name, stored, _TYPES[kind], start + offset, metadata)
        if tensors[name]["data_offsets"][1] > len(cursor.content) or tensors.keys() & {""}:
            raise ValueError("beyond the end")
    if len(tensors) != num_tensors:
        raise ValueError("a name is given twice")
    return tensors


def _entry(cursor: _Cursor) -> tuple[str, list[int], int, int]:
    """Name, shape in torch's order, type and offset of a tensor."""
    name, num_dims = cursor.text(), int(cursor.number("I"))
    if num_dims > _MAX_DIMS:
        raise ValueError("dimensions")
    shape = [int(cursor.number("Q")) for _ in range(num_dims)][::-1]
    return name, shape, int(cursor.number("I")), int(cursor.number("Q"))


def _placed(name: str, stored: list[int], kind: str, start: int, metadata: dict[str, Any]) -> dict[str, Any]:
    block, size = BLOCKS[kind]
    numbers = math.prod(stored)
    if numbers % block:
        raise ValueError("part of a block")
    shape = list(metadata.get(_SHAPE_KEY + name) or stored)
    if math.prod(shape) != numbers or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError("another shape")
    return {"dtype": kind, "shape": shape, "data_offsets": [start, start + numbers // block * size]}

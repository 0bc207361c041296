"""The weight files of a component: found in a folder, and their headers read and checked. Reads no weights.

Imports neither torch nor diffusers.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import InputError
from ..system import json_reader

AGAIN = "download the whole checkpoint again"
_MAX_HEADER = json_reader.MAX_BYTES  # room for 200,000 tensors; safetensors allows three times as much
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file whose header was read and found to match the file's size.

    Attributes:
        name: path below the checkpoint's folder, with forward slashes.
        tensors: name of each tensor -> its entry in the header, with dtype and shape.
        header_digest: the first 16 hexadecimal digits of the header's SHA-256.
    """

    path: Path
    name: str
    tensors: Mapping[str, Mapping[str, Any]]
    header_digest: str

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor["shape"]) for tensor in self.tensors.values())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes. Files in the Hub's cache are named by it, so they are not read."""
        blob = Path(os.path.realpath(self.path)).name
        if len(blob) == 64 and all(c in "0123456789abcdef" for c in blob):
            return blob
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a checkpoint's file. Raises InputError if the file is missing or holds none."""
    if not path.exists():
        raise InputError(f"{path}: expected a JSON file, got none; {AGAIN}")
    value = json_reader.read_json(path, remedy="download the file again")
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}; download the file again")
    return value


def read_header(path: Path) -> bytes:
    """Return the header of a safetensors file. Raises InputError unless the file has the size that it implies."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        header = file.read(length) if 0 < length <= min(size - 8, _MAX_HEADER) else b""
    end = max((tensor["data_offsets"][1] for tensor in _tensors_in(header, path).values()), default=0)
    if 8 + length + end != size:
        raise InputError(
            f"{path}: expected {8 + length + end} bytes, got {size} (incomplete or damaged); download it again"
        )
    return header


def read_weight_file(path: Path, checkpoint: Path) -> WeightFile:
    """Read the header of a file below `checkpoint`. Raises InputError if it is incomplete or damaged."""
    header = read_header(path)
    digest = hashlib.sha256(header).hexdigest()[:16]
    return WeightFile(path, str(path.relative_to(checkpoint)), _tensors_in(header, path), digest)


def _tensors_in(header: bytes, path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors header: dtype, shape and offsets of each. Raises InputError for another content."""
    damaged = InputError(f"{path}: not a safetensors file, or a damaged one; download it again")
    try:
        values = json_reader.parse_json(header, str(path), max_bytes=_MAX_HEADER, refuse_repeated_keys=True)
    except InputError:
        raise damaged from None
    if not isinstance(values, dict):
        raise damaged
    tensors = {name: tensor for name, tensor in values.items() if name != "__metadata__"}
    for tensor in tensors.values():
        if not isinstance(tensor, dict) or not isinstance(tensor.get("dtype"), str):
            raise damaged
        offsets, shape = tensor.get("data_offsets"), tensor.get("shape")
        if not (_are_counts(offsets) and _are_counts(shape) and len(offsets) == 2):
            raise damaged
        if math.prod(shape) * _BITS.get(tensor["dtype"], -1) != 8 * (offsets[1] - offsets[0]):
            raise damaged
    end = 0
    for start, stop in sorted((*tensor["data_offsets"],) for tensor in tensors.values()):
        if start != end:
            raise damaged  # a gap, or two tensors in one place
        end = stop
    metadata = values.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise damaged
    return tensors


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _file_names(index: Path) -> list[str]:
    """The files that an index of weights names, which are all next to it. Raises InputError for any other names."""
    weight_map = read_json(index).get("weight_map", {})
    names: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    for name in names:
        if not isinstance(name, str) or not name or name != Path(name).name or "\0" in name:
            raise InputError(f"{index}: weight_map: expected names of files next to it, got {name!r}; {AGAIN}")
    return sorted(set(names))


def weight_paths(folder: Path) -> list[Path]:
    """Return the safetensors files of a component: those that its index names, or all if it has no index.

    Raises:
        InputError: if there is none, or one is missing.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    named = [folder / name for index in indexes[:1] for name in _file_names(index)]
    files = named if indexes else sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: expected weights as .safetensors files, got none; {AGAIN}")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: expected a weight file, got none; {AGAIN}")
    return files

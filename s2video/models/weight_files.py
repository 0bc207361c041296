"""The weight files of a component: found, and their headers read and checked. Reads no weights.

A component's files are those that diffusers and transformers would load from its folder, or those that the user names
(`model.transformer: FILE`). They are safetensors or GGUF; a pickle (.bin, .pt, .pth, .ckpt) can contain code and is
refused. Imports neither torch nor diffusers.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import InputError
from ..system import json_reader
from ..system.file_digests import FileIdentity, file_digest
from ..system.files import user_path
from .gguf_header import MAGIC, read_gguf_header

AGAIN = "download the whole checkpoint again"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_MAX_HEADER = json_reader.MAX_BYTES  # room for 200,000 tensors; safetensors allows three times as much
_MAX_SHARDS = 1000
_NO_PICKLE = "a pickle can contain code, so none is loaded: take the model's .safetensors file, or convert it"
INDEXES = ("model_index.json", "modular_model_index.json")  # of a pipeline, and of one that is a chain of blocks
DIFFUSERS_PARTS = ("transformer", "vae", "audio_vae")  # begin the names of the components that diffusers loads
_POINTER = b"version https://git-lfs.github.com/spec/"
_SHARD = re.compile(r"-(\d+)-of-(\d+)(\.safetensors|\.gguf)$")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)(-\d+-of-\d+)?\.safetensors$")
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


def index_of(folder: Path) -> Path:
    """Return the file that names a checkpoint's components; the usual one if there is none."""
    return next((folder / name for name in INDEXES if (folder / name).is_file()), folder / INDEXES[0])


@dataclass(frozen=True)
class WeightFile:
    """One safetensors or GGUF file whose header was read and found to match the file's size.

    Attributes:
        name: path below the checkpoint's folder, with forward slashes; of a file that the user named, its component and
            its number, so that the name does not depend on the place.
        tensors: name of each tensor -> its entry in the header, with dtype, shape and place.
        identity: of the file whose header was read.
        is_gguf: whether it is GGUF; else it is safetensors.
    """

    path: Path
    name: str
    tensors: Mapping[str, Mapping[str, Any]]
    identity: FileIdentity
    is_gguf: bool = False

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor["shape"]) for tensor in self.tensors.values())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes. Raises InputError if the file has changed since its header was read."""
        return file_digest(self.path, self.identity)


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
        start = file.read(len(_POINTER))
        _refuse_start(start, path)
        (length,) = struct.unpack("<Q", start[:8].ljust(8, b"\0"))
        file.seek(8)
        header = file.read(length) if 0 < length <= min(size - 8, _MAX_HEADER) else b""
    end = max((tensor["data_offsets"][1] for tensor in _tensors_in(header, path).values()), default=0)
    if 8 + length + end != size:
        raise InputError(
            f"{path}: expected {8 + length + end} bytes, got {size} (incomplete or damaged); download it again"
        )
    return header


def read_weight_file(path: Path, name: str) -> WeightFile:
    """Read a file's header. Raises InputError if the file is incomplete, damaged, or neither safetensors nor GGUF."""
    identity = FileIdentity.of(path)
    if path.suffix == ".gguf":
        refuse_pointer(path)
        return WeightFile(path, name, read_gguf_header(path), identity, is_gguf=True)
    if path.suffix in PICKLES:
        raise InputError(f"{path}: expected .safetensors or .gguf, got {path.name}; {_NO_PICKLE}")
    return WeightFile(path, name, _tensors_in(read_header(path), path), identity)


def refuse_pointer(path: Path) -> None:
    """Raise InputError for a file that Git LFS left in place of the real one."""
    with path.open("rb") as file:
        _refuse_start(file.read(len(_POINTER)), path)


def _refuse_start(start: bytes, path: Path) -> None:
    if start[:4] == MAGIC and path.suffix != ".gguf":
        raise InputError(f"{path}: expected a safetensors file, got GGUF; give it a name that ends in .gguf")
    if start == _POINTER:
        raise InputError(f"{path}: expected the file, got a Git LFS pointer to it; run git lfs pull in its folder")


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
        bits = _BITS.get(tensor["dtype"])
        if bits is None or math.prod(shape) * bits != 8 * (offsets[1] - offsets[0]):
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
    if not names:
        raise InputError(f"{index}: weight_map: expected names of files, got none; {AGAIN}")
    return sorted(set(names))


def weight_paths(folder: Path, stem: str, variant: str | None = None, *, index_first: bool = True) -> list[Path]:
    """Return the weight files of a component's folder, as diffusers (or transformers) chooses them.

    With both an index and a single file, diffusers takes the index and transformers the file. In addition, a set of
    shards without an index is accepted if it is complete, and a single file if it has another name.

    Args:
        stem: "diffusion_pytorch_model" or "model".
        variant: such as "fp16"; a component without files of it has its plain ones, as in diffusers.
        index_first: True for diffusers, False for transformers.

    Raises:
        InputError: if there is none, or one is missing; the message says what there is instead.
    """
    for kind in dict.fromkeys((variant, None)):
        indexes = [folder / f"{stem}.safetensors.index{_dotted(kind)}.json"]
        indexes = [index for index in indexes if index.is_file()]
        if kind is None and not indexes:
            indexes = sorted(folder.glob("*.safetensors.index.json"))[:1]
        single = folder / f"{stem}{_dotted(kind)}.safetensors"
        if single.is_file() and not (indexes and index_first):
            return [single]
        if indexes:
            return _present([folder / name for name in _file_names(indexes[0])])
        if shards := sorted(folder.glob(f"{stem}{_dotted(kind)}-*-of-*.safetensors")):
            return _whole_set(shards[0])
    return _only_file(folder)


def _only_file(folder: Path) -> list[Path]:
    """The only weight file of a folder, or the only set of shards. Raises InputError for any other number."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix in (".safetensors", ".gguf")]
    sets = {tuple(_whole_set(path)) if _SHARD.search(path.name) else (path,) for path in files}
    variants = {path: match[1] for path in files if (match := _VARIANT.search(path.name))}
    if files and len(variants) == len(files):
        names = " or ".join(sorted(set(variants.values())))
        raise InputError(f"{folder}: expected plain weights, got only those of variant {names}; set model.variant")
    if len(sets) == 1:
        return list(sets.pop())
    if files:
        names = ", ".join(path.name for path in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        raise InputError(f"{folder}: expected one weight file or an index, got {names}; keep one, or name the file")
    pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES]
    if pickles:
        raise InputError(f"{folder}: expected weights as .safetensors files, got {pickles[0]}; {_NO_PICKLE}")
    raise InputError(f"{folder}: expected weights as .safetensors files, got none; {AGAIN}")


def named_paths(text: str, field: str) -> list[Path]:
    """Return the files that a setting names: one file, one shard (for all of its set), an index, or a folder.

    Raises:
        InputError: if there is no such file, or a shard is missing; the message begins with `field`.
    """
    path = user_path(text)
    if path.is_dir():
        indexes = sorted(path.glob("*.safetensors.index.json"))[:1]
        return _present([path / name for name in _file_names(indexes[0])]) if indexes else _only_file(path)
    if not path.is_file():
        raise InputError(
            f"{field}: expected a .safetensors or .gguf file on this machine, got {text!r}; check the path"
        )
    if path.name.endswith(".index.json"):
        return _present([path.parent / name for name in _file_names(path)])
    return _whole_set(path) if _SHARD.search(path.name) else [path]


def _whole_set(shard: Path) -> list[Path]:
    """All files of the set that a shard (NAME-00001-of-00006.safetensors) belongs to."""
    match = _SHARD.search(shard.name)
    assert match is not None
    digits, total = len(match[1]), int(match[2])
    if not 0 < total <= _MAX_SHARDS:
        raise InputError(f"{shard}: expected a set of 1 to {_MAX_SHARDS} files, got {total}; check its name")
    names = (_SHARD.sub(f"-{i:0{digits}}-of-{match[2]}{match[3]}", shard.name) for i in range(1, total + 1))
    return _present([shard.with_name(name) for name in names])


def _present(files: Sequence[Path]) -> list[Path]:
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: expected a weight file, got none; {AGAIN}")
    return list(files)


def _dotted(variant: str | None) -> str:
    return "" if variant is None else f".{variant}"

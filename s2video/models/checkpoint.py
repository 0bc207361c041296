"""Access to a checkpoint in diffusers format: reads and checks its JSON files and the headers of its weight files.

Reports a missing or incomplete download before any weights are loaded. Imports neither torch nor diffusers.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import InputError
from ..system import json_reader
from ..system.files import user_path
from .family import PROCESSORS, CheckpointInfo, Family, JsonFile
from .registry import FAMILIES, family_of

ASSETS = Path(__file__).resolve().parents[1] / "assets"
EMBEDDED = ("shapes-wan",)
_FOLDERS = {"scheduler", *(name for family in FAMILIES for name in family.classes)}
_SETTINGS = {"scheduler": "scheduler_config.json", **dict.fromkeys(PROCESSORS, "preprocessor_config.json")}
_HUB_FILES = ["model_index.json", *(f"{name}/*" for name in sorted(_FOLDERS))]
_MAX_HEADER = 100_000_000  # bytes; the limit of safetensors
_AGAIN = "download the whole checkpoint again"


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


class Checkpoint:
    """A folder in diffusers format. Each file is read once, at its first use.

    Args:
        folder: the folder; `open_checkpoint` finds it and checks that it is complete.

    Attributes:
        family: the family of its pipeline, with its model_index.json.

    Raises:
        InputError: if model_index.json is missing, damaged, or names an unknown pipeline.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.family: Family = family_of(_json_file(folder / "model_index.json"))
        self._configs: dict[str, JsonFile] = {}
        self._files: dict[str, tuple[WeightFile, ...]] = {}

    @cached_property
    def info(self) -> CheckpointInfo:
        """The bounds that the JSON files set. Raises InputError for an unsupported kind of model."""
        first, *others = (self.family.describe(self.config(name), self.config("vae")) for name in self.transformers)
        for name, other in zip(self.transformers[1:], others, strict=True):
            for field, expected in asdict(first).items():
                if (found := getattr(other, field)) != expected:
                    raise InputError(
                        f"{self.folder / name}: {field}: expected {expected} as in {self.transformers[0]}, got "
                        f"{found}; {_AGAIN}"
                    )
        return first

    @property
    def transformers(self) -> tuple[str, ...]:
        """The components that denoise, in the order in which they are used."""
        return self.family.transformers

    def class_of(self, component: str) -> str:
        """Return the name of the class that loads a component; the checkpoint names that of its scheduler."""
        if component != "scheduler":
            return self.family.components[component]
        entry = self.family.index.values.get("scheduler")
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
            raise InputError(f"{self.family.index.path}: scheduler: expected [library, class], got {entry!r}; {_AGAIN}")
        return entry[1]

    def config(self, component: str) -> JsonFile:
        """Return a component's settings. Raises InputError if the file is missing or is not a JSON object."""
        if component not in self._configs:
            is_weighted = component in self.family.weighted
            name = "config.json" if is_weighted else _SETTINGS.get(component, "tokenizer_config.json")
            file = _json_file(self.folder / component / name)
            _refuse_code(file.values, file.path)
            self._configs[component] = file
        return self._configs[component]

    def files(self, component: str) -> tuple[WeightFile, ...]:
        """Return a component's weight files. Raises InputError if one is missing, incomplete or damaged."""
        if component not in self._files:
            self._files[component] = tuple(
                _read_weight_file(path, self.folder) for path in _weight_paths(self.folder / component)
            )
        return self._files[component]

    def num_parameters(self, component: str) -> int:
        """Return the number of parameters in a component's weight files, from their headers."""
        return sum(file.num_parameters for file in self.files(component))

    def check(self) -> None:
        """Raise InputError unless every component exists, its JSON is readable and its weight files are complete."""
        for name in (*self.family.components, "scheduler"):
            if not (self.folder / name).is_dir():
                raise InputError(f"{self.folder}: expected a folder {name}/, got none; {_AGAIN}")
            self.config(name)
            if name in self.family.weighted:
                self.files(name)

    def fingerprint(self) -> dict[str, str]:
        """Return names of all weight files -> digests of their headers. Cheap; ranks compare them."""
        return {file.name: file.header_digest for file in self._weights()}

    def weight_digests(self) -> dict[str, str]:
        """Return names of all weight files -> SHA-256 of their bytes; each file is hashed once."""
        return {file.name: file.sha256 for file in self._weights()}

    def digests(self) -> dict[str, str]:
        """Return names of all files of the components (weights, configurations, tokenizers) -> their SHA-256."""
        small = {}
        for path in sorted(self.folder.glob("*/*")):
            is_ours = path.is_file() and path.parent.name in {*self.family.components, "scheduler"}
            if is_ours and not path.name.endswith((".safetensors", ".bin", ".md")):
                small[str(path.relative_to(self.folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.weight_digests() | small

    def _weights(self) -> tuple[WeightFile, ...]:
        return tuple(file for name in self.family.weighted for file in self.files(name))


OpenModel = Callable[[str, str | None], Checkpoint]
"""(path, revision) -> the checkpoint, opened once. Usually `functools.cache(open_checkpoint)`."""


def open_checkpoint(path: str, revision: str | None = None, *, may_download: bool = True) -> Checkpoint:
    """Find a model and check that its files are complete, without reading weights.

    Args:
        path: the name of an embedded model, a folder, or a Hub id, which is downloaded to the Hub's cache.
        revision: branch, tag or commit of a Hub id.
        may_download: False: a Hub id has to be in the Hub's cache already, because only a data file names it.

    Raises:
        InputError: if there is no model, or a file is missing or damaged; the message names the file.
    """
    checkpoint = Checkpoint(find_checkpoint(path, revision, may_download=may_download))
    checkpoint.check()
    return checkpoint


def find_checkpoint(path: str, revision: str | None = None, *, may_download: bool = True) -> Path:
    """Return the local folder of a model: an embedded one by name, a folder, or a Hub id (downloaded to the cache).

    Raises:
        InputError: if there is none; the message says where it looked.
    """
    if path in EMBEDDED:
        return ASSETS / path
    folder = user_path(path)
    if folder.is_dir():
        return folder
    or_else = f" or an embedded model ({', '.join(EMBEDDED)})"
    return download(path, "model.path", _HUB_FILES, revision, or_else=or_else, may_download=may_download)


def download(
    path: str,
    field: str,
    files: list[str],
    revision: str | None = None,
    *,
    or_else: str = "",
    may_download: bool = True,
) -> Path:
    """Download `files` (patterns) of a Hub id and return their cached folder.

    Args:
        field: the setting that holds `path`; error messages begin with it.
        or_else: ends the list of what `path` can be, in an error message.
        may_download: False: the files have to be in the Hub's cache already.

    Raises:
        InputError: if `path` cannot be a Hub id, or cannot be downloaded.
    """
    names_a_path = path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).parent.is_dir()
    if names_a_path or "\\" in path:
        raise InputError(
            f"{field}: expected a folder or a Hub id (owner/name){or_else}, got {path!r}; check the spelling"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=files, local_files_only=not may_download))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if not may_download:
            raise InputError(
                f"{field}: {path!r} is not on this machine and is not downloaded, because only a data file names "
                f"it: if you trust it, name it yourself with --model {path}"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{field}: {path!r} is not a local folder and could not be downloaded from the Hub ({reason}); check the "
            "spelling, the connection, and access (hf auth login)"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a checkpoint's file. Raises InputError if the file is missing or holds none."""
    if not path.exists():
        raise InputError(f"{path}: expected a JSON file, got none; {_AGAIN}")
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


def _refuse_code(values: Any, path: Path, *, of_a_kernel: bool = False) -> None:
    """Raise InputError for settings by which transformers downloads a kernel, which is code: a Hub id as attention."""
    if of_a_kernel and isinstance(values, str) and "/" in values:
        raise InputError(
            f"{path}: expected the name of an attention that is built in, got {values!r}, for which code would be "
            "downloaded; remove that entry"
        )
    if isinstance(values, dict):
        for key, value in values.items():
            _refuse_code(
                value, path, of_a_kernel=of_a_kernel or "attn_implementation" in key or "experts_implementation" in key
            )
    elif isinstance(values, list):
        for value in values:
            _refuse_code(value, path, of_a_kernel=of_a_kernel)


def _json_file(path: Path) -> JsonFile:
    return JsonFile(path, read_json(path))


def _read_weight_file(path: Path, checkpoint: Path) -> WeightFile:
    header = read_header(path)
    digest = hashlib.sha256(header).hexdigest()[:16]
    return WeightFile(path, str(path.relative_to(checkpoint)), _tensors_in(header, path), digest)


def _tensors_in(header: bytes, path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors header: dtype, shape and offsets of each. Raises InputError for another content."""
    damaged = InputError(f"{path}: not a safetensors file, or a damaged one; download it again")
    try:
        values = json_reader.parse_json(header, str(path), max_bytes=_MAX_HEADER)
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
    return tensors


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _file_names(index: Path) -> list[str]:
    """The files that an index of weights names, which are all next to it. Raises InputError for any other names."""
    weight_map = read_json(index).get("weight_map", {})
    names: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    for name in names:
        if not isinstance(name, str) or not name or name != Path(name).name or "\0" in name:
            raise InputError(f"{index}: weight_map: expected names of files next to it, got {name!r}; {_AGAIN}")
    return sorted(set(names))


def _weight_paths(folder: Path) -> list[Path]:
    """Return the safetensors files of a component: those that its index names, or all if it has no index."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    named = [folder / name for index in indexes[:1] for name in _file_names(index)]
    files = named if indexes else sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: expected weights as .safetensors files, got none; {_AGAIN}")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: expected a weight file, got none; {_AGAIN}")
    return files

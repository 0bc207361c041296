"""A checkpoint in diffusers format, opened once: its JSON files and the headers of its weights, read and checked.

A missing or cut-off download is one clear line before anything heavy is loaded. Imports neither torch nor diffusers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.files import user_path
from .family import PROCESSORS, CheckpointInfo, Family, JsonFile
from .registry import FAMILIES, family_of

ASSETS = Path(__file__).resolve().parents[1] / "assets"
EMBEDDED = ("shapes-wan",)
_FOLDERS = {"scheduler", *(name for family in FAMILIES for name in family.classes)}
_SETTINGS = {"scheduler": "scheduler_config.json", **dict.fromkeys(PROCESSORS, "preprocessor_config.json")}
_HUB_FILES = ["model_index.json", *(f"{name}/*" for name in sorted(_FOLDERS))]
_AGAIN = "download the checkpoint again, whole"


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file whose header was read and found to match the file's size.

    Attributes:
        name: its path below the checkpoint's folder, with forward slashes.
        tensors: name of each tensor -> its dtype and shape, as the header gives them.
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
        """SHA-256 of the file's bytes. Files of the Hub's cache are named by it already."""
        blob = Path(os.path.realpath(self.path)).name
        if len(blob) == 64 and all(c in "0123456789abcdef" for c in blob):
            return blob
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class Checkpoint:
    """A folder in diffusers format. Every file is read when it is first asked for, and only once.

    Args:
        folder: where it is; `open_checkpoint` finds it, and checks that it is whole.

    Attributes:
        family: the class of its pipeline, with its model_index.json.

    Raises:
        InputError: a model_index.json that is missing, damaged, or of a pipeline that is not known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.family: Family = family_of(_json_file(folder / "model_index.json"))
        self._configs: dict[str, JsonFile] = {}
        self._files: dict[str, tuple[WeightFile, ...]] = {}

    @cached_property
    def info(self) -> CheckpointInfo:
        """The bounds that its JSON files set. Raises InputError for a model of another kind."""
        first, *others = (self.family.describe(self.config(name), self.config("vae")) for name in self.transformers)
        for name, other in zip(self.transformers[1:], others, strict=True):
            for field, expected in asdict(first).items():
                if (found := getattr(other, field)) != expected:
                    raise InputError(
                        f"{self.folder / name}: {field}: expected {expected}, as of the first transformer, got "
                        f"{found}; {_AGAIN}"
                    )
        return first

    @property
    def transformers(self) -> tuple[str, ...]:
        """The components that denoise, in the order in which they take over."""
        return self.family.transformers

    def class_of(self, component: str) -> str:
        """Return the name of the class that loads a component; the scheduler's is the checkpoint's own choice."""
        if component != "scheduler":
            return self.family.components[component]
        entry = self.family.index.values.get("scheduler")
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
            raise InputError(f"{self.family.index.path}: scheduler: expected [library, class], got {entry!r}; {_AGAIN}")
        return entry[1]

    def config(self, component: str) -> JsonFile:
        """Return a component's settings. Raises InputError for a file that is missing or is not a JSON object."""
        if component not in self._configs:
            is_weighted = component in self.family.weighted
            name = "config.json" if is_weighted else _SETTINGS.get(component, "tokenizer_config.json")
            self._configs[component] = _json_file(self.folder / component / name)
        return self._configs[component]

    def files(self, component: str) -> tuple[WeightFile, ...]:
        """Return a component's weight files. Raises InputError for one that is missing, cut off or damaged."""
        if component not in self._files:
            self._files[component] = tuple(
                _read_weight_file(path, self.folder) for path in _weight_paths(self.folder / component)
            )
        return self._files[component]

    def num_parameters(self, component: str) -> int:
        """Return how many numbers a component's weight files hold, from their headers."""
        return sum(file.num_parameters for file in self.files(component))

    def check(self) -> None:
        """Raise InputError unless every component is there, its JSON is readable, and its weight files are whole."""
        for name in (*self.family.components, "scheduler"):
            if not (self.folder / name).is_dir():
                raise InputError(f"{self.folder}: the folder {name}/ is missing; {_AGAIN}")
            self.config(name)
            if name in self.family.weighted:
                self.files(name)

    def fingerprint(self) -> dict[str, str]:
        """Return names of all weight files -> digests of their headers: cheap, for ranks to compare."""
        return {file.name: file.header_digest for file in self._weights()}

    def weight_digests(self) -> dict[str, str]:
        """Return names of all weight files -> SHA-256 of their bytes; each file is hashed once."""
        return {file.name: file.sha256 for file in self._weights()}

    def digests(self) -> dict[str, str]:
        """Return SHA-256 of all that the components hold: weights, configurations, tokenizers."""
        small = {}
        for path in sorted(self.folder.glob("*/*")):
            is_ours = path.is_file() and path.parent.name in {*self.family.components, "scheduler"}
            if is_ours and not path.name.endswith((".safetensors", ".bin", ".md")):
                small[str(path.relative_to(self.folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.weight_digests() | small

    def _weights(self) -> tuple[WeightFile, ...]:
        return tuple(file for name in self.family.weighted for file in self.files(name))


OpenModel = Callable[[str, str | None], Checkpoint]
"""(path, revision) -> the checkpoint, opened once: `functools.cache(open_checkpoint)`."""


def open_checkpoint(path: str, revision: str | None = None) -> Checkpoint:
    """Find a model and check that it is whole; no weights are read.

    Args:
        path: an embedded model's name, a folder, or a Hub id, which is downloaded to the Hub's cache.
        revision: branch, tag or commit of a Hub id.

    Raises:
        InputError: nothing there, or something missing or damaged; the message names the file.
    """
    checkpoint = Checkpoint(find_checkpoint(path, revision))
    checkpoint.check()
    return checkpoint


def find_checkpoint(path: str, revision: str | None = None) -> Path:
    """Return the local folder of a model: an embedded one by name, a folder, or a Hub id (downloaded to the cache).

    Raises:
        InputError: there is none; the message says what was looked for.
    """
    if path in EMBEDDED:
        return ASSETS / path
    folder = user_path(path)
    if folder.is_dir():
        return folder
    return download(path, "model.path", _HUB_FILES, revision, or_else=f" or an embedded model ({', '.join(EMBEDDED)})")


def download(path: str, field: str, files: list[str], revision: str | None = None, *, or_else: str = "") -> Path:
    """Return the cached folder of those files of a Hub id; `or_else` names what else `path` could have been.

    Raises:
        InputError: `path` cannot be a Hub id, or cannot be downloaded; the message begins with `field`.
    """
    names_a_path = path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).parent.is_dir()
    if names_a_path or "\\" in path:
        raise InputError(
            f"{field}: no folder {path!r}, and it is not a Hub id (owner/name){or_else}; check the spelling"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{field}: {path!r} is not a local folder and could not be downloaded from the Hub ({reason}); check the "
            "spelling, the connection, and access (hf auth login)"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a checkpoint's file. Raises InputError for a file that is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: the file is missing; {_AGAIN}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: expected JSON ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}; download the file again")
    return value


def read_header(path: Path) -> bytes:
    """Return a safetensors file's header. Raises InputError unless the file is as long as the header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        header = file.read(length) if 0 < length <= size - 8 else b""
    try:
        tensors = json.loads(header)
        end = max((t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise InputError(f"{path}: not a safetensors file, or a damaged one; download it again") from None
    if 8 + length + end != size:
        raise InputError(
            f"{path}: expected {8 + length + end} bytes, got {size}: cut off or damaged; download it again"
        )
    return header


def _json_file(path: Path) -> JsonFile:
    return JsonFile(path, read_json(path))


def _read_weight_file(path: Path, checkpoint: Path) -> WeightFile:
    header = read_header(path)
    tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
    digest = hashlib.sha256(header).hexdigest()[:16]
    return WeightFile(path, str(path.relative_to(checkpoint)), tensors, digest)


def _weight_paths(folder: Path) -> list[Path]:
    """The safetensors files of one component: those that its index names, or all that there are."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(read_json(indexes[0]).get("weight_map", {}).values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors file; expected weights in that format")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: the file is missing; {_AGAIN}")
    return files

"""A checkpoint in diffusers format: found, checked, and read as far as no weights are needed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from .family import PROCESSORS, CheckpointInfo, Family, JsonFile
from .registry import FAMILIES, family_of

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED = ("shapes-wan",)
_FOLDERS = {"scheduler", *(name for family in FAMILIES.values() for name in family.classes)}
_SETTINGS = {"scheduler": "scheduler_config.json", **dict.fromkeys(PROCESSORS, "preprocessor_config.json")}
_HUB_FILES = ["model_index.json", *(f"{name}/*" for name in sorted(_FOLDERS))]


def find_checkpoint(path: str, revision: str | None = None) -> Path:
    """The local folder of a model: an embedded one by name, a folder, or a Hub id (downloaded to the Hub's cache).

    Raises:
        InputError: where there is none; the message says what was looked for.
    """
    if path in EMBEDDED:
        return ASSETS / path
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    return download(path, "model.path", _HUB_FILES, revision, or_else=f" or an embedded model ({', '.join(EMBEDDED)})")


def download(path: str, field: str, files: list[str], revision: str | None = None, *, or_else: str = "") -> Path:
    """The Hub's cache of those files of a Hub id; `or_else`: what else it might have been that is no folder.

    Raises:
        InputError: where it cannot be a Hub id, or cannot be had; the message begins with `field`.
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
            f"{field}: {path!r} is neither a folder here nor could it be had from the Hub ({reason}); check the "
            "spelling, the connection, and access (hf auth login)"
        ) from None


def check_checkpoint(folder: Path) -> None:
    """Every component is there, its JSON can be read, and its weight files are whole.

    Reads headers only, no weights.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    family = read_family(folder)
    for name in (*family.components, "scheduler"):
        if not (folder / name).is_dir():
            raise InputError(f"{folder}: the folder {name}/ is missing; download the checkpoint again, whole")
        if name in family.weighted:
            read_json(folder / name / "config.json")
            for file in weight_files(folder / name):
                read_header(file)
        else:
            read_json(folder / name / _SETTINGS.get(name, "tokenizer_config.json"))


def read_family(folder: Path) -> Family:
    """Of which pipeline a folder is. Raises InputError where none is known, see `family_of`."""
    path = folder / "model_index.json"
    return family_of(JsonFile(path, read_json(path)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file; InputError where it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: the file is missing; download the checkpoint again, whole") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: JSON was expected ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, got {type(value).__name__}; download the file again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component: those that its index names, or else all there are."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(read_json(indexes[0]).get("weight_map", {}).values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors file; weights in that format were expected")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: the file is missing; download the checkpoint again, whole")
    return files


def read_header(path: Path) -> bytes:
    """A safetensors file's header, after checking that the file is as long as the header says."""
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
            f"{path}: {8 + length + end} bytes were expected, it has {size}: cut off or damaged; download it again"
        )
    return header


def fingerprint(folder: Path) -> dict[str, str]:
    """File names of all weights -> digest of their headers (names, shapes, dtypes): cheap, for ranks to compare."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(read_header(file)).hexdigest()[:16]
        for name in read_family(folder).weighted
        for file in weight_files(folder / name)
    }


def num_parameters(folder: Path) -> int:
    """Numbers in the weight files of one component, from their headers. Raises InputError as `check_checkpoint`."""
    headers = (json.loads(read_header(file)) for file in weight_files(folder))
    return sum(math.prod(t["shape"]) for header in headers for name, t in header.items() if name != "__metadata__")


def weight_digests(folder: Path) -> dict[str, str]:
    """File names of all weights -> SHA-256 of their bytes. Files of the Hub's cache are named by it already."""
    digests = {}
    for name in read_family(folder).weighted:
        for file in weight_files(folder / name):
            blob = Path(os.path.realpath(file)).name
            if len(blob) == 64 and all(c in "0123456789abcdef" for c in blob):
                digests[str(file.relative_to(folder))] = blob
                continue
            with file.open("rb") as stream:
                digests[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def read_checkpoint(folder: Path) -> CheckpointInfo:
    """Read the bounds from a folder that passed `check_checkpoint`. Raises InputError for an unknown kind."""
    from .checkpoint import read_family, read_json

    def settings(component: str) -> JsonFile:
        path = folder / component / "config.json"
        return JsonFile(path, read_json(path))

    family, vae = read_family(folder), settings("vae")
    first, *others = (family.describe(settings(name), vae) for name in family.transformers)
    for name, other in zip(family.transformers[1:], others, strict=True):
        for field, expected in asdict(first).items():
            if (came := getattr(other, field)) != expected:
                raise InputError(
                    f"{folder / name}: {field}: expected {expected}, as of the first transformer, came {came}; "
                    "download the checkpoint again, whole"
                )
    return first

"""Access to a checkpoint in diffusers format: reads and checks its JSON files and the headers of its weight files.

Reports a missing or incomplete download before any weights are loaded. Imports neither torch nor diffusers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.files import user_path
from .family import PROCESSORS, CheckpointInfo, Family, JsonFile
from .foreign import check_bounds, check_latent_statistics
from .formats import refuse_as_model
from .registry import FAMILIES, family_of
from .weight_files import (
    AGAIN,
    DIFFUSERS_PARTS,
    INDEXES,
    PICKLES,
    WeightFile,
    index_of,
    named_paths,
    read_json,
    read_weight_file,
    refuse_pointer,
    weight_paths,
)

ASSETS = Path(__file__).resolve().parents[1] / "assets"
EMBEDDED = ("shapes-wan", "shapes-wan-24")  # the default one first
_FOLDERS = {"scheduler", *(name for family in FAMILIES for name in family.classes)}
_SETTINGS = dict.fromkeys(("scheduler", "audio_scheduler"), "scheduler_config.json")
_SETTINGS |= dict.fromkeys(PROCESSORS, "preprocessor_config.json")
_POINTER_BYTES = 1024  # a Git LFS pointer is shorter
_HUB_FILES = [*INDEXES, *(f"{name}/*" for name in sorted(_FOLDERS))]


class Checkpoint:
    """A folder in diffusers format. Each file is read once, at its first use.

    Args:
        folder: the folder; `open_checkpoint` finds it and checks that it is complete.
        variant: such as "fp16", for weight files that have it in their names; components without such files have their
            plain ones.
        files: components -> weights that replace those of the folder, as the user names them.

    Attributes:
        family: the family of its pipeline, with its model_index.json or modular_model_index.json.
        named: the components whose weights are not those of the folder.
        conversions: loaded components whose weights had other names or formats -> how they were converted.

    Raises:
        InputError: if that file is missing, damaged, or names an unknown pipeline.
    """

    def __init__(self, folder: Path, variant: str | None = None, files: Iterable[tuple[str, str]] = ()) -> None:
        self.folder = folder
        self.variant = variant
        self._named = dict(files)
        self.family: Family = family_of(_json_file(index_of(folder)))
        _check_folders(self.family)
        self.conversions: dict[str, str] = {}
        self._configs: dict[str, JsonFile] = {}
        self._files: dict[str, tuple[WeightFile, ...]] = {}
        for component in self._named:
            if component not in self.family.weighted:
                raise InputError(
                    f"model.{component}: expected null for this checkpoint, which has no {component}, got "
                    f"{self._named[component]!r}; leave it out"
                )

    @property
    def named(self) -> frozenset[str]:
        return frozenset(self._named)

    @cached_property
    def info(self) -> CheckpointInfo:
        """The bounds that the JSON files set. Raises InputError for an unsupported kind of model."""
        first, *others = (self.family.describe(self.config(name), self.config("vae")) for name in self.transformers)
        for name, other in zip(self.transformers[1:], others, strict=True):
            for field, expected in asdict(first).items():
                if (found := getattr(other, field)) != expected:
                    raise InputError(
                        f"{self.folder / name}: {field}: expected {expected} as in {self.transformers[0]}, got "
                        f"{found}; {AGAIN}"
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
        if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], str):
            raise InputError(f"{self.family.index.path}: scheduler: expected [library, class], got {entry!r}; {AGAIN}")
        return entry[1]

    def config(self, component: str) -> JsonFile:
        """Return a component's settings. Raises InputError if the file is missing or is not a JSON object."""
        if component not in self._configs:
            is_weighted = component in self.family.weighted
            name = "config.json" if is_weighted else _SETTINGS.get(component, "tokenizer_config.json")
            file = _json_file(self.folder / component / name)
            _refuse_code(file.values, file.path)
            check_bounds(file.values, file.path)
            if component in ("vae", "audio_vae"):
                check_latent_statistics(file.values, file.path)
            self._configs[component] = file
        return self._configs[component]

    def files(self, component: str) -> tuple[WeightFile, ...]:
        """Return a component's weight files. Raises InputError if one is missing, incomplete or damaged."""
        if component not in self._files:
            if component in self._named:
                paths = named_paths(self._named[component], f"model.{component}")
                names = [f"{component}/file {number} of {len(paths)}" for number in range(1, len(paths) + 1)]
            else:
                is_diffusers = component.startswith(DIFFUSERS_PARTS)
                stem = "diffusion_pytorch_model" if is_diffusers else "model"
                paths = weight_paths(self.folder / component, stem, self.variant, index_first=is_diffusers)
                names = [f"{component}/{path.name}" for path in paths]
            self._files[component] = tuple(map(read_weight_file, paths, names))
        return self._files[component]

    def source(self, component: str) -> Path:
        """Return the file or folder that holds a component's weights, for messages."""
        files = self.files(component)
        return self.folder / component if component not in self._named else files[0].path

    def num_parameters(self, component: str) -> int:
        """Return the number of parameters in a component's weight files, from their headers."""
        return sum(file.num_parameters for file in self.files(component))

    def check(self) -> None:
        """Raise InputError unless every component exists, its JSON is readable and its weight files are complete."""
        for name in (*self.family.components, "scheduler"):
            if not (self.folder / name).is_dir():
                raise InputError(f"{self.folder}: expected a folder {name}/, got none; {AGAIN}")
            for path in sorted((self.folder / name).iterdir()):
                is_weights = path.suffix in (".safetensors", ".gguf")  # looked at below, if they are used
                if path.is_file() and not is_weights and path.stat().st_size < _POINTER_BYTES:
                    refuse_pointer(path)
            self.config(name)
            if name in self.family.weighted:
                self.files(name)
        weighted = [name for name in self.family.weighted if name not in self._named]
        if self.variant and not any(f".{self.variant}" in file.name for name in weighted for file in self.files(name)):
            raise InputError(
                f"model.variant: expected weight files with .{self.variant} in their names in {self.folder}, got none; "
                "leave it out"
            )

    def weight_digests(self) -> dict[str, str]:
        """Return names of all weight files -> SHA-256 of their bytes; each file is hashed once."""
        return {file.name: file.sha256 for file in self.weights()}

    def digests(self) -> dict[str, str]:
        """Return names of all files of the components (weights, configurations, tokenizers) -> their SHA-256."""
        return self.weight_digests() | self._small_digests | self._index_digest()

    def _index_digest(self) -> dict[str, str]:
        """The digest of what model_index.json sets, such as where the second transformer starts; empty if nothing."""
        settings = {
            key: value
            for key, value in self.family.index.values.items()
            if not key.startswith("_") and not isinstance(value, list) and value not in (None, False)
        }
        if not settings:
            return {}
        return {self.family.index.path.name: hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}

    def settings_digests(self) -> dict[str, str]:
        """Return names of all files but weights -> their SHA-256, with model_index.json; each file is read once."""
        index = self.family.index.path
        return self._small_digests | {index.name: hashlib.sha256(index.read_bytes()).hexdigest()}

    @cached_property
    def _small_digests(self) -> dict[str, str]:
        small = {}
        for path in sorted(self.folder.glob("*/*")):
            is_ours = path.is_file() and path.parent.name in {*self.family.components, "scheduler"}
            if is_ours and not path.name.endswith((".safetensors", ".gguf", ".md", *PICKLES)):
                small[str(path.relative_to(self.folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return small

    def weights(self) -> tuple[WeightFile, ...]:
        """Return the weight files of all components."""
        return tuple(file for name in self.family.weighted for file in self.files(name))


OpenModel = Callable[..., Checkpoint]
"""(*`ModelConfig.source`) -> the checkpoint, opened once. Usually `functools.cache(open_checkpoint)`."""


def open_checkpoint(
    path: str,
    revision: str | None = None,
    variant: str | None = None,
    files: tuple[tuple[str, str], ...] = (),
    *,
    may_download: bool = True,
) -> Checkpoint:
    """Find a model and check that its files are complete, without reading weights.

    Args:
        path: the name of an embedded model, a folder, or a Hub id, which is downloaded to the Hub's cache.
        revision: branch, tag or commit of a Hub id.
        variant, files: see `Checkpoint`.
        may_download: False: a Hub id has to be in the Hub's cache already, because only a data file names it.

    Raises:
        InputError: if there is no model, or a file is missing or damaged; the message names the file.
    """
    without = [component for component, _ in files]
    checkpoint = Checkpoint(find_checkpoint(path, revision, without, may_download=may_download), variant, files)
    checkpoint.check()
    return checkpoint


def find_checkpoint(
    path: str, revision: str | None = None, without: Collection[str] = (), *, may_download: bool = True
) -> Path:
    """Return the local folder of a model: an embedded one by name, a folder, or a Hub id (downloaded to the cache).

    Args:
        without: components whose weights are not downloaded.

    Raises:
        InputError: if there is none; the message says where it looked, or what else the path is.
    """
    if path in EMBEDDED:
        return ASSETS / path
    folder = user_path(path, "model.path")
    if (folder.is_dir() and not index_of(folder).exists()) or folder.is_file():
        refuse_as_model(folder)
    if folder.is_dir():
        return folder
    patterns = [name for name in _HUB_FILES if name.removesuffix("/*") not in without]
    patterns += [f"{name}/*.json" for name in without]
    or_else = f" or an embedded model ({', '.join(EMBEDDED)})"
    return download(path, "model.path", patterns, revision, or_else=or_else, may_download=may_download)


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


def _check_folders(family: Family) -> None:
    """Raise InputError unless the components that an index names are in folders of the same name."""
    for name in (*family.components, "scheduler"):
        entry = family.index.values.get(name)
        place = entry[2] if isinstance(entry, list) and len(entry) == 3 else None
        folder = place.get("subfolder") if isinstance(place, dict) else None
        if folder not in (None, "", name):
            raise InputError(
                f"{family.index.path}: {name}: expected the subfolder {name!r}, got {str(folder)[:60]!r}; download the "
                "checkpoint as it was published"
            )

"""LoRA files: find, check and hash them, and add them to a transformer.

Pairs of matrices are not fused into the model and keep their own precision, as in diffusers' pipelines. Differences of
weights, and formats that peft does not apply to such models, are added to the weights. Does not sample.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.sections import LoraConfig
from ..errors import InputError, S2VideoError
from ..system.file_digests import file_digest
from ..system.files import user_path
from .checkpoint import download
from .weight_files import read_header

if TYPE_CHECKING:  # these import torch, which takes seconds, and the command line looks for files first
    from .lora_format import LoraFile, Target

_SHOWN, _RECORDED = 3, 100  # names of tensors that were not applied
_PUBLISHED_NAME = "pytorch_lora_weights.safetensors"  # written by diffusers


def require_peft() -> None:
    """Raise InputError unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise InputError("model.lora: expected peft to be installed, got none; pip install 's2video[lora]'")


def find_lora(path: str) -> Path:
    """Return the safetensors file of a LoRA.

    Args:
        path: a file, a folder with one such file, a Hub id with one, or a file of a Hub id (owner/name/file), which are
            downloaded.

    Raises:
        InputError: if there is no file or several, or it is damaged.
    """
    file = user_path(path, "model.lora")
    if not file.exists():
        owner, _, rest = path.partition("/")
        name, _, inner = rest.partition("/")
        if inner.endswith(".safetensors") and owner not in ("", ".", "..", "~") and not Path(owner).exists():
            file = download(f"{owner}/{name}", "model.lora", [inner]) / inner
        elif path.endswith(".safetensors"):
            raise InputError(
                f"model.lora: expected a file, a folder or a Hub id (owner/name), got {path!r}; check the spelling"
            )
        else:
            file = download(path, "model.lora", ["*.safetensors"])
        if not file.exists():
            raise InputError(f"model.lora: {path}: expected that file on the Hub, got none; check the spelling")
    if file.is_dir():
        files = sorted(file.glob("*.safetensors"))
        if len(files) != 1:
            files = [found for found in files if found.name == _PUBLISHED_NAME] or files
        if len(files) != 1:
            names = ", ".join(found.name for found in files) or "none"
            raise InputError(f"model.lora: {path}: expected one .safetensors file, got {names}; name the file")
        file = files[0]
    read_header(file)
    return file


def lora_digests(loras: Sequence[LoraConfig]) -> dict[str, str]:
    """Return a description of each LoRA, without its path -> SHA-256 of its file. Raises as `find_lora`."""
    digests = {}
    for number, lora in enumerate(loras, 1):
        name = f"lora {number}, on {lora.component}, scale {lora.scale!r}"
        digests[name] = file_digest(find_lora(lora.path))
    return digests


@dataclass(frozen=True)
class AppliedLora:
    """What became of the tensors of a file.

    Attributes:
        name: the file's, without its folder.
        num_tensors: all that the file has.
        left_out: reasons -> names of tensors that were not applied.
    """

    name: str
    component: str
    scale: float
    num_tensors: int
    left_out: Mapping[str, Sequence[str]]

    @property
    def num_applied(self) -> int:
        return self.num_tensors - sum(map(len, self.left_out.values()))

    def line(self) -> str:
        """Return what a person reads about the file."""
        said = [f"LoRA {self.name} on {self.component}: {self.num_applied} of {self.num_tensors} tensors applied"]
        for reason, names in self.left_out.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            said.append(f"not applied: {len(names)} {reason} ({', '.join(names[:_SHOWN])}{more})")
        return "; ".join(said)

    def record(self) -> dict[str, Any]:
        """Return the entry of the sidecar, as JSON."""
        return {
            "component": self.component,
            "scale": self.scale,
            "tensors": self.num_tensors,
            "applied": self.num_applied,
            "not_applied": {reason: list(names[:_RECORDED]) for reason, names in self.left_out.items()},
        }


def load_loras(transformer: Any, loras: Sequence[LoraConfig], component: str, pipeline: str) -> list[AppliedLora]:
    """Add the LoRAs for `component` to its transformer, each at its scale, and return what became of their tensors.

    Pairs of matrices are added beside the weights, by peft; every other change is added to the weights themselves.

    Args:
        transformer: the component, with unsharded weights.
        pipeline: name of the checkpoint's pipeline in diffusers, for messages.

    Raises:
        InputError: if a file cannot be read, the transformer has none of its layers, or sizes differ.
    """
    loras = [lora for lora in loras if lora.component == component]
    applied, adapters = [], {}
    for number, lora in enumerate(loras, 1):
        path = find_lora(lora.path)
        with _one_line(path, pipeline):
            file, has_pairs = _add(transformer, path, lora.scale, f"lora_{number}")
        if has_pairs:
            adapters[f"lora_{number}"] = lora.scale
        applied.append(AppliedLora(path.name, component, lora.scale, file.num_tensors, file.left_out))
    if adapters:
        transformer.set_adapters(list(adapters), list(adapters.values()))
    transformer.eval().requires_grad_(False)
    return applied


def _add(transformer: Any, path: Path, scale: float, adapter: str) -> tuple[LoraFile, bool]:
    """Apply one file. Also returns whether it has pairs, for which there is an adapter."""
    from torch import nn

    from .lora_change import change_of, check_layer, is_pair, pair_of, peft_settings
    from .lora_format import find_targets, note_unused, read_lora

    modules = {name.replace(".base_layer", ""): module for name, module in transformer.named_modules()}
    parameters = {name.replace(".base_layer", ""): value for name, value in transformer.named_parameters()}
    file = read_lora(path, modules)
    targets = find_targets(file, parameters.keys(), type(transformer).__name__, transformer.config)
    if not targets:
        first = next(iter(file.layers), None) or next((keys[0] for keys in file.left_out.values()), None)
        raise InputError(
            f"model.lora: {path}: expected layers of {type(transformer).__name__}, got "
            f"{'none' if first is None else f'{first}, ...'}; use a LoRA made for this model"
        )
    pairs, done = {}, []
    for layer in file.layers.values():
        check_layer(file, layer)
    for target in targets:
        module, parameter = modules.get(target.parameter.rpartition(".")[0]), parameters[target.parameter]
        if is_pair(target) and isinstance(module, nn.Linear):
            _check_sizes(file, target, module)
            pairs[target.parameter.removesuffix(".weight")] = pair_of(file, target)
        elif not _change(file, target, parameter, change_of, scale):
            continue
        done.append(target)
    note_unused(file, done)
    if not done:
        raise InputError(f"model.lora: {path}: expected tensors of the model's shapes, got none; use another LoRA")
    if pairs:
        state = {f"{name}.lora_A.weight": down for name, (down, _, _) in pairs.items()}
        state |= {f"{name}.lora_B.weight": up for name, (_, up, _) in pairs.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are intended
            settings = peft_settings(pairs)
            transformer.load_lora_adapter(state, prefix=None, metadata=settings, adapter_name=adapter)
    return file, bool(pairs)


def _change(file: LoraFile, target: Target, parameter: Any, change_of: Any, scale: float) -> bool:
    """Add a change to a parameter, and return whether it was added: not to an image's channels that a model lacks."""
    import torch

    from .lora_format import leave_out

    if not parameter.is_floating_point() or type(parameter.data) is not torch.Tensor:
        raise InputError(
            f"model.lora: {file.path}: {target.parameter}: expected plain weights, got quantized ones, to which a "
            "difference cannot be added; leave model.quantization out, or take the checkpoint in bfloat16 or float16"
        )
    try:
        change = scale * change_of(file, target, parameter)
    except ValueError as error:
        if target.parameter.startswith(("patch_embedding.", "x_embedder.")):
            leave_out(file, target, "of another shape")
            return False
        raise InputError(
            f"model.lora: {file.path}: {target.layer.name}: expected size as in the model, got {error}; use a LoRA "
            "made for this model"
        ) from None
    # a new tensor, because the old one can be a view of the file
    parameter.data = (parameter.data.float() + change.to(parameter.device)).to(parameter.dtype)
    return True


def _check_sizes(file: LoraFile, target: Target, layer: Any) -> None:
    """Raise InputError unless a pair has the sizes of a linear layer."""
    down, up = target.layer.tensors["A"], target.layer.tensors["B"]
    rows = len(up) if target.rows is None else len(target.rows)
    for role, got, size in (("A", down.shape[1], layer.in_features), ("B", rows, layer.out_features)):
        if got != size or down.ndim != 2:
            raise InputError(
                f"model.lora: {file.path}: {target.layer.keys[role]}: expected size {size} as in the model, got {got}; "
                "use a LoRA made for this model"
            )


@contextmanager
def _one_line(path: Path, pipeline: str) -> Iterator[None]:
    """Turn what diffusers and peft raise for a file's content into one InputError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, S2VideoError) or type(error).__name__ == "OutOfMemoryError":
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"model.lora: {path}: expected a LoRA for {pipeline}, got other tensors ({reason}); choose another file"
        ) from error

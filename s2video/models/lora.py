"""LoRA files: find, check and hash them, and add them to a transformer with diffusers and peft.

LoRA weights are not fused into the model and keep their own precision, as in diffusers' pipelines. Published files name
layers in several ways; the class of the checkpoint's pipeline converts the names. Does not sample.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.sections import LoraConfig
from ..errors import InputError, S2VideoError
from ..system.file_digests import file_digest
from ..system.files import user_path
from .checkpoint import download
from .lora_pairs import check_pairs
from .weight_files import read_header

if TYPE_CHECKING:  # the import takes seconds, and the command line looks for files first
    import torch

_PUBLISHED_NAME = "pytorch_lora_weights.safetensors"  # written by diffusers


def require_peft() -> None:
    """Raise InputError unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise InputError("model.lora: expected peft to be installed, got none; pip install 's2video[lora]'")


def find_lora(path: str) -> Path:
    """Return the safetensors file of a LoRA.

    Args:
        path: a file, a folder with one such file, or a Hub id, which is downloaded.

    Raises:
        InputError: if there is no file or several, or it is damaged.
    """
    file = user_path(path, "model.lora")
    if not file.exists():
        if path.endswith(".safetensors"):
            raise InputError(
                f"model.lora: expected a file, a folder or a Hub id (owner/name), got {path!r}; check the spelling"
            )
        file = download(path, "model.lora", ["*.safetensors"])
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


def load_loras(transformer: Any, loras: Sequence[LoraConfig], component: str, pipeline: str) -> None:
    """Add the LoRAs for `component` to its transformer, each at its scale.

    Args:
        transformer: the component, with unsharded weights.
        pipeline: name of the checkpoint's pipeline in diffusers.

    Raises:
        InputError: if the pipeline cannot read a file, the transformer has none of its layers, or sizes differ.
    """
    loras = [lora for lora in loras if lora.component == component]
    if not loras:
        return
    import diffusers

    kind = getattr(diffusers, pipeline)
    for number, lora in enumerate(loras, 1):
        path = find_lora(lora.path)
        with _one_line(path, pipeline):
            state, metadata = kind.lora_state_dict(str(path), return_lora_metadata=True, use_safetensors=True)
        prefix = "transformer" if any(key.startswith("transformer.") for key in state) else None
        _check_layers(path, transformer, {key.removeprefix("transformer."): value for key, value in state.items()})
        check_pairs(path, state)
        with _one_line(path, pipeline), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are intended
            transformer.load_lora_adapter(state, prefix=prefix, metadata=metadata, adapter_name=f"lora_{number}")
    transformer.set_adapters([f"lora_{number + 1}" for number in range(len(loras))], [lora.scale for lora in loras])
    transformer.eval().requires_grad_(False)


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


def _check_layers(path: Path, transformer: Any, state: dict[str, torch.Tensor]) -> None:
    """Raise InputError if no key names a layer of the transformer, or a linear layer has another size."""
    from torch import nn

    layers = dict(transformer.named_modules())
    layer_names = {key: re.split(r"[._]lora|\.lokr_", key)[0] for key in state}
    if not any(name in layers for name in layer_names.values()):
        found = f"{next(iter(layer_names.values()))}, ..." if layer_names else "none"
        raise InputError(
            f"model.lora: {path}: expected layers of {type(transformer).__name__}, got {found}; use a LoRA made for "
            "this model"
        )
    for key, name in layer_names.items():
        layer = layers.get(name)
        layer = getattr(layer, "base_layer", layer)  # base_layer if the layer has a LoRA already
        if not isinstance(layer, nn.Linear) or not key.endswith(("lora_A.weight", "lora_B.weight")):
            continue
        if state[key].ndim != 2:
            raise InputError(f"model.lora: {path}: {key}: expected two matrices, got {list(state[key].shape)}")
        side, size = (1, layer.in_features) if "lora_A" in key else (0, layer.out_features)
        if state[key].shape[side] != size:
            raise InputError(
                f"model.lora: {path}: {key}: expected size {size} as in the model, got {state[key].shape[side]}; "
                "use a LoRA made for this model"
            )

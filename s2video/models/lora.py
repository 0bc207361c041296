"""LoRA files: found, checked and digested, and put on a transformer by diffusers and peft.

The weights stay beside the model's own: unfused, in their own precision, as diffusers' pipelines run them. Published
files name layers in several ways; the class of the checkpoint's pipeline translates. Knows no sampling.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.sections import LoraConfig
from ..errors import InputError
from ..system.files import user_path
from .checkpoint import download, read_header

if TYPE_CHECKING:  # the command line looks for files before it spends seconds on importing torch
    import torch

_PUBLISHED_NAME = "pytorch_lora_weights.safetensors"  # diffusers' own


def require_peft() -> None:
    """Raise InputError unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise InputError("model.lora: needs peft, which is not installed: pip install 's2video[lora]'")


def find_lora(path: str) -> Path:
    """The safetensors file of a LoRA: a file, the only one of a folder, or that of a Hub id (downloaded).

    Raises:
        InputError: where there is none, or a folder has several; where it is damaged.
    """
    place = user_path(path)
    if not place.exists():
        if path.endswith(".safetensors"):
            raise InputError(f"model.lora: no file {path!r}; check the spelling")
        place = download(path, "model.lora", ["*.safetensors"])
    if place.is_dir():
        files = sorted(place.glob("*.safetensors"))
        if len(files) != 1:
            files = [file for file in files if file.name == _PUBLISHED_NAME] or files
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise InputError(f"model.lora: {path}: one .safetensors file was expected, got {names}: name the file")
        place = files[0]
    read_header(place)
    return place


def lora_digests(loras: Sequence[LoraConfig]) -> dict[str, str]:
    """What each LoRA does, in words -> SHA-256 of its file; the same wherever the file lies. Raises InputError."""
    digests = {}
    for number, lora in enumerate(loras, 1):
        with find_lora(lora.path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[f"lora {number}, on {lora.component}, scale {lora.scale!r}"] = digest
    return digests


def load_loras(transformer: Any, loras: Sequence[LoraConfig], component: str, pipeline: str) -> None:
    """Put those LoRAs that are for `component` on it, a transformer whose weights are whole, each at its scale.

    Args:
        pipeline: diffusers' name of the checkpoint's pipeline.

    Raises:
        InputError: a file that the pipeline cannot read, one none of whose layers the transformer has, and one whose
            layers are of other sizes.
    """
    loras = [lora for lora in loras if lora.component == component]
    if not loras:
        return
    import diffusers

    kind = getattr(diffusers, pipeline)
    for number, lora in enumerate(loras, 1):
        path = find_lora(lora.path)
        try:
            state, metadata = kind.lora_state_dict(str(path), return_lora_metadata=True)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
            raise InputError(f"model.lora: {path}: {pipeline} cannot make a LoRA of its tensors ({error})") from None
        prefix = "transformer" if any(key.startswith("transformer.") for key in state) else None
        _check_layers(path, transformer, {key.removeprefix("transformer."): value for key, value in state.items()})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
            transformer.load_lora_adapter(state, prefix=prefix, metadata=metadata, adapter_name=f"lora_{number}")
    transformer.set_adapters([f"lora_{number + 1}" for number in range(len(loras))], [lora.scale for lora in loras])
    transformer.eval().requires_grad_(False)


def _check_layers(path: Path, transformer: Any, state: dict[str, torch.Tensor]) -> None:
    """Raise InputError where no key names a layer of the transformer, or a linear layer is of another size."""
    from torch import nn

    layers = dict(transformer.named_modules())
    named = {key: re.split(r"[._]lora|\.lokr_", key)[0] for key in state}
    if not any(name in layers for name in named.values()):
        raise InputError(
            f"model.lora: {path}: none of its layers ({next(iter(named.values()), 'it has none')}, ...) is one of "
            f"{type(transformer).__name__}: take a LoRA that was made for this model"
        )
    for key, name in named.items():
        layer = layers.get(name)
        layer = getattr(layer, "base_layer", layer)  # where another LoRA is already
        if not isinstance(layer, nn.Linear) or not key.endswith(("lora_A.weight", "lora_B.weight")):
            continue
        side, size = (1, layer.in_features) if "lora_A" in key else (0, layer.out_features)
        if state[key].shape[side] != size:
            raise InputError(
                f"model.lora: {path}: {key}: expected a size of {size}, as the model has, got {state[key].shape[side]}"
                ": take a LoRA that was made for this model"
            )

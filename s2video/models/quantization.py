"""Quantised weights of transformers (`model.quantization`), by diffusers' own quantisers.

Linear layers are quantised while they are loaded: by torchao those of the blocks, by bitsandbytes also those of the
embeddings and the output. Those of a GGUF file are quantised already and stay as they are (`gguf_weights.py`). What
cannot be combined is refused before a model is loaded. Imports torch and the quantisers' packages only to use them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from ..config.run import RunConfig
from ..errors import InputError, S2VideoError
from .gguf_weights import GGUF

if TYPE_CHECKING:
    import torch
    from torch import nn

Package = Literal["torchao", "bitsandbytes", "gguf"]
_INSTALL: dict[Package, str] = {
    "torchao": "pip install 's2video[quant]'",
    "bitsandbytes": "pip install bitsandbytes",
    "gguf": "pip install 's2video[gguf]'",
}


@dataclass(frozen=True)
class Method:
    """A way to store the weights of linear layers.

    Attributes:
        kind: the package's class, or diffusers' name of its setting.
        weight_bytes: of one weight, with its scales; None if the file decides.
        text: for the sidecar.
        on_cpu: whether it runs there.
        capability: the least compute capability of a GPU that it runs on; None if all have it.
    """

    package: Package
    kind: str
    weight_bytes: float | None
    text: str
    on_cpu: bool = True
    capability: tuple[int, int] | None = None


METHODS = {
    "int8": Method("torchao", "Int8WeightOnlyConfig", 1.0, "int8 weights"),
    "int8_dynamic": Method("torchao", "Int8DynamicActivationInt8WeightConfig", 1.0, "int8 weights and activations"),
    "fp8": Method("torchao", "Float8WeightOnlyConfig", 1.0, "fp8 weights"),
    "fp8_dynamic": Method(
        "torchao",
        "Float8DynamicActivationFloat8WeightConfig",
        1.0,
        "fp8 weights and activations",
        on_cpu=False,
        capability=(8, 9),
    ),
    "bnb_int8": Method("bitsandbytes", "load_in_8bit", 1.0, "int8 weights", on_cpu=False),
    # 4 bits, and a float32 for 64 weights
    "bnb_nf4": Method("bitsandbytes", "load_in_4bit", 0.5625, "nf4 weights", on_cpu=False),
    GGUF: Method("gguf", "GGUFQuantizationConfig", None, "as GGUF stores them"),
}


def check_quantization(config: RunConfig) -> None:
    """Raise InputError if `model.quantization` is set together with a setting that needs plain weights."""
    model, name = config.model, config.model.quantization
    if name is None:
        return
    if config.parallel.weights != "replicated":
        raise InputError(
            f"model.quantization: {name} needs parallel.weights replicated, because a quantised weight cannot be cut "
            f"into rows or copied as bytes, got {config.parallel.weights}; set one of the two to its default"
        )
    named = next((key for key in ("transformer", "transformer_2") if getattr(model, key) is not None), None)
    if named is not None and name != GGUF:
        raise InputError(
            f"model.quantization: {name} needs the transformer in diffusers' format, because diffusers quantises while "
            f"it loads, got model.{named}; leave one of the two out"
        )
    if model.offload_experts and METHODS[name].package == "bitsandbytes":
        raise InputError(
            f"model.quantization: {name} keeps weights on the GPU, so model.offload_experts has to be false; set that, "
            "or choose int8 or fp8, which torchao can move"
        )


def require_quantizer(config: RunConfig, device: str, quantized_by: Sequence[str | None]) -> None:
    """Raise InputError unless the weights of this checkpoint can be quantised as set, on this machine.

    Args:
        device: "cpu" or "cuda".
        quantized_by: what the weights of each transformer were quantised by already, or None.
    """
    name = config.model.quantization
    if name is None:
        return
    method = METHODS[name]
    if (already := next((by for by in quantized_by if by is not None), None)) is not None:
        raise InputError(
            f"model.quantization: expected null for a checkpoint that is quantised by {already}, got {name}; leave it "
            "out, or take the checkpoint in bfloat16"
        )
    if importlib.util.find_spec(method.package) is None:
        raise InputError(
            f"model.quantization: {name} needs {method.package}, which is not installed; {_INSTALL[method.package]}"
        )
    if device == "cpu" and not method.on_cpu:
        raise InputError(f"model.quantization: {name} needs a GPU, got a CPU; choose int8, int8_dynamic or fp8")
    if device != "cpu" and method.capability is not None:
        import torch

        if (found := torch.cuda.get_device_capability()) < method.capability:
            least, own = (f"{major}.{minor}" for major, minor in (method.capability, found))
            raise InputError(
                f"model.quantization: {name} needs a GPU of compute capability {least} or newer, got {own}; choose "
                "int8, int8_dynamic or fp8"
            )


def diffusers_settings(name: str, block_lists: Sequence[str], dtype: torch.dtype) -> Any:
    """Return diffusers' settings that quantise the linear layers in these lists of blocks.

    diffusers lets bitsandbytes leave out layers by name alone, and the blocks of HunyuanVideo have layers named like
    others. So it quantises all.
    """
    import diffusers

    method = METHODS[name]
    if method.package == "torchao":
        from torchao import quantization

        weights = getattr(quantization, method.kind)()
        blocks = f"re:({'|'.join(block_lists)})\\..+"
        return diffusers.TorchAoConfig(quantization.FqnToConfig({blocks: weights}))
    if method.kind == "load_in_8bit":
        return diffusers.BitsAndBytesConfig(load_in_8bit=True)
    return diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def description(name: str) -> str:
    """Return what the sidecar says about quantised weights."""
    method = METHODS[name]
    which = "the blocks'" if method.package == "torchao" else "all"
    return f"{method.text} of {which} linear layers, by {method.package} {version(method.package)}"


def require_quantized(blocks: Sequence[nn.Module], name: str) -> None:
    """Raise S2VideoError if weights that should be quantised are plain ones, as some ways to load leave them."""
    from torch import nn

    linear = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    if not linear or any(type(module.weight) is nn.Parameter for module in linear):
        raise S2VideoError(
            f"model.quantization: expected diffusers to quantise all linear layers of the blocks by {name}, got plain "
            "weights; leave the setting out"
        )

"""Names of published files turned into those of diffusers and transformers, and which rows make each tensor.

diffusers' own converters rename, split and join tensors. Here they run on tracers: tensors that hold, for each row of
the file's tensor, where that row is. What comes out says for every row of the module's tensors where it comes from, so
weights can be read in parts, by each rank only its own, without a copy of diffusers' tables. Reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

_ROWS = 2**32  # more than any tensor has
_OTHERS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")
_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", "transformer."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("text_encoders.umt5xxl.transformer.", "text_encoders.umt5xxl.", "text_encoder."),
}


class Rows(NamedTuple):
    """Consecutive rows of one tensor: `first` … `last` - 1, along its first dimension."""

    source: str
    first: int
    last: int


Converter = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def strip_prefix(names: list[str], component: str) -> dict[str, str]:
    """Return names without the prefix that ComfyUI and others put before a component's names -> names.

    If some tensors have the prefix, those of other components in the same file are left out.
    """
    for prefix in _PREFIXES.get(component.removesuffix("_2"), ()):
        if any(name.startswith(prefix) for name in names):
            others = tuple(other for other in _OTHERS if not prefix.startswith(other))
            return {name.removeprefix(prefix): name for name in names if not name.startswith(others)}
    return {name: name for name in names}


def trace(sizes: Mapping[str, int], convert: Converter, source: object) -> dict[str, list[Rows]]:
    """Return the names that a converter makes -> the rows of the original tensors that each consists of, in order.

    Args:
        sizes: names of the original tensors -> their numbers of rows (1 for a number).
        source: names the file in the error.

    Raises:
        InputError: if the converter cannot handle these names.
    """
    names = list(sizes)
    tracers = {name: torch.arange(rows) + index * _ROWS for index, (name, rows) in enumerate(sizes.items())}
    try:
        converted = convert(tracers)
    except (KeyError, ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{source}: its names cannot be converted to diffusers' ({reason[0] if reason else type(error).__name__}); "
            "take a file of this very model"
        ) from None
    return {name: _runs(rows, names) for name, rows in converted.items()}


def _runs(rows: Tensor, names: list[str]) -> list[Rows]:
    """Split traced rows into runs that are consecutive in one original tensor."""
    ends = [*((rows[1:] - rows[:-1]) != 1).nonzero().flatten().add(1).tolist(), len(rows)]
    runs, first = [], 0
    for end in ends:
        index, row = divmod(int(rows[first]), _ROWS)
        runs.append(Rows(names[index], row, row + end - first))
        first = end
    return runs


def converter_for(class_name: str, config: Mapping[str, Any]) -> Converter | None:
    """Return what turns a component's original names into those of its class in diffusers or transformers, or None."""
    if class_name in ("UMT5EncoderModel", "T5EncoderModel"):
        return _t5_names
    if class_name == "AutoencoderKLWan":
        return _wan_vae
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    entry = SINGLE_FILE_LOADABLE_CLASSES.get(class_name)
    if entry is None:
        return None
    convert: Callable[..., Mapping[str, Tensor]] = entry["checkpoint_mapping_fn"]
    if class_name == "MiniMaxH3Transformer3DModel":
        return lambda tensors: convert(checkpoint=tensors, config=dict(config))
    if class_name != "HunyuanVideoTransformer3DModel":
        return lambda tensors: convert(checkpoint=tensors)
    width = int(config.get("num_attention_heads", 24)) * int(config.get("attention_head_dim", 128))
    return lambda tensors: convert(checkpoint=split_joined(tensors, width))


def split_joined(tensors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Split the joined first layer of HunyuanVideo's single blocks: Q, K and V, each `width` rows, and the MLP.

    diffusers' converter does this for the published width only.
    """
    parts: dict[str, Tensor] = {}
    for name, rows in tensors.items():
        match = re.fullmatch(r"(.*single_blocks\.\d+)\.linear1\.(weight|bias)", name)
        if match is None:
            parts[name] = rows
            continue
        pieces = rows.split([width, width, width, len(rows) - 3 * width])
        for layer, piece in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), pieces, strict=True):
            parts[f"{match[1]}.{layer}.{match[2]}"] = piece
    return parts


def _wan_vae(tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Convert by diffusers, and before that the levels of Wan 2.2's VAE, which diffusers does not know."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    nested = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")
    if not any(nested.fullmatch(name) for name in tensors):
        converted: Mapping[str, Tensor] = convert_wan_vae_to_diffusers(tensors)
        return converted
    levels, others = {}, {}
    for name, rows in tensors.items():
        if (match := nested.fullmatch(name)) is None:
            others[name] = rows
            continue
        half, way, level, place, rest = match.groups()
        if rest.startswith(("resample.", "time_conv.")):
            layer = f"{way}sampler.{rest}"
        else:
            layer = f"resnets.{place}.{_RESNET.sub(lambda found: _RESNET_NAMES[found[0]], rest)}"
        levels[f"{half}.{way}_blocks.{level}.{layer}"] = rows
    return {**convert_wan_vae_to_diffusers(others), **levels}


_RESNET_NAMES = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
_RESNET_NAMES |= {"shortcut": "conv_shortcut"}
_RESNET = re.compile(r"residual\.[0236]|shortcut")

_T5_LAYERS = {
    # Wan's original name, llama.cpp's name -> the name in transformers
    ("attn.q", "attn_q"): "layer.0.SelfAttention.q",
    ("attn.k", "attn_k"): "layer.0.SelfAttention.k",
    ("attn.v", "attn_v"): "layer.0.SelfAttention.v",
    ("attn.o", "attn_o"): "layer.0.SelfAttention.o",
    ("pos_embedding.embedding", "attn_rel_b"): "layer.0.SelfAttention.relative_attention_bias",
    ("norm1", "attn_norm"): "layer.0.layer_norm",
    ("norm2", "ffn_norm"): "layer.1.layer_norm",
    ("ffn.gate.0", "ffn_gate"): "layer.1.DenseReluDense.wi_0",
    ("ffn.fc1", "ffn_up"): "layer.1.DenseReluDense.wi_1",
    ("ffn.fc2", "ffn_down"): "layer.1.DenseReluDense.wo",
}
_T5_OTHERS = {
    "token_embedding.weight": "shared.weight",
    "token_embd.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
}


def _t5_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = {name: theirs for names, theirs in _T5_LAYERS.items() for name in names}
    named = {}
    for name, rows in tensors.items():
        match = re.fullmatch(r"(?:blocks|enc\.blk)\.(\d+)\.(.+)\.weight", name)
        if match is not None and match[2] in layers:
            named[f"encoder.block.{match[1]}.{layers[match[2]]}.weight"] = rows
        else:
            named[_T5_OTHERS.get(name, name)] = rows
    return named

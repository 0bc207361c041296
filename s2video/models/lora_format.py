"""LoRA files: what each tensor of a file is, whatever program wrote it, and which parameters it changes.

A layer's change can be a low-rank pair (LoRA, DoRA), a product of two pairs (LoHa), a Kronecker product (LoKr), or a
difference of the weight, the bias or a table. Layers have diffusers' names, the model's original names, or those with
underscores (kohya, musubi); original names go through diffusers' own converter. Computes no change; see `lora_change`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..system.json_reader import parse_json
from .conversion import Rows, converter_for, trace
from .weight_files import read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PREFIXES = re.compile(
    r"(base_model\.model\.|base_model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|dit\.)"
)
_UNDERSCORED = re.compile(r"(lora_unet_|lora_transformer_|lycoris_)")
_ELSEWHERE = re.compile(r"^(text_encoder|te\.|lora_te|clip|conditioner|vae|transformer_2\.)")
_ROLES = {
    "A": r"[._]lora_?\.?(?:A|down)(?:\.[\w-]+)?\.weight",
    "B": r"[._]lora_?\.?(?:B|up)(?:\.[\w-]+)?\.weight",
    "B_bias": r"[._]lora_?\.?(?:B|up)(?:\.[\w-]+)?\.bias",
    "alpha": r"\.alpha",
    "magnitude": r"\.(?:dora_scale|lora_magnitude_vector(?:\.[\w-]+)?(?:\.weight)?)",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"\.diff_m",
    **{f"hada_{name}": rf"\.hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f"lokr_{name}": rf"\.lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
}
_ROLE = re.compile("(?P<layer>.+?)(?:" + "|".join(f"(?P<{role}>{pattern})" for role, pattern in _ROLES.items()) + ")$")
# names of layers that have underscores themselves, in the two models' original code
_COMPOUND = (
    "self_attn",
    "cross_attn",
    "norm_q",
    "norm_k_img",
    "norm_k",
    "k_img",
    "v_img",
    "img_emb",
    "patch_embedding",
    "text_embedding",
    "time_embedding",
    "time_projection",
    "double_blocks",
    "single_blocks",
    "img_attn_qkv",
    "img_attn_proj",
    "img_attn_q_norm",
    "img_attn_k_norm",
    "txt_attn_qkv",
    "txt_attn_proj",
    "txt_attn_q_norm",
    "txt_attn_k_norm",
    "img_mlp",
    "txt_mlp",
    "img_mod",
    "txt_mod",
    "img_in",
    "txt_in",
    "time_in",
    "vector_in",
    "guidance_in",
    "in_layer",
    "out_layer",
    "final_layer",
    "adaLN_modulation",
    "individual_token_refiner",
    "self_attn_qkv",
    "self_attn_proj",
    "input_embedder",
    "t_embedder",
    "c_embedder",
    "linear_1",
    "linear_2",
)


@dataclass
class Layer:
    """The tensors of one layer in a file.

    Attributes:
        name: the layer's, without the prefixes of programs, with dots.
        tensors: by role, one of `_ROLES`.
        keys: their names in the file, by role.
    """

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


@dataclass
class LoraFile:
    """A file of any of these formats.

    Attributes:
        num_tensors: all that it has.
        layers: by name.
        left_out: reasons -> names of tensors that cannot be applied.
        settings: PEFT's, if diffusers wrote the file: lora_alpha, r, use_rslora, alpha_pattern and others.
    """

    path: Path
    num_tensors: int
    layers: dict[str, Layer]
    left_out: dict[str, list[str]]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Rows of a layer's change that belong to one parameter, in the parameter's order; None: all of them."""

    parameter: str
    layer: Layer
    rows: torch.Tensor | None = None


def read_lora(path: Path, modules: Collection[str]) -> LoraFile:
    """Read a file and sort its tensors by layer.

    Args:
        modules: the names of the transformer's modules, for names with underscores.

    Raises:
        InputError: if the file is damaged, or a tensor is given twice.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = _settings(path)
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model.lora: {path}: cannot be read ({error}); download it again") from None
    file = LoraFile(path, len(state), {}, {}, settings)
    underscored = {name.replace(".", "_"): name for name in modules}
    for key, value in state.items():
        if _ELSEWHERE.match(key):
            file.left_out.setdefault("for another component", []).append(key)
            continue
        match = _ROLE.match(key)
        if match is None:
            file.left_out.setdefault("of an unknown kind", []).append(key)
            continue
        role = next(role for role in _ROLES if match[role] is not None)
        name = _plain_name(match["layer"], underscored)
        layer = file.layers.setdefault(name, Layer(name))
        if role in layer.tensors:
            raise InputError(f"model.lora: {path}: {key}: this tensor of layer {name} is given twice; keep one")
        layer.tensors[role] = value.float() if value.dtype.itemsize == 1 else value  # no arithmetic in fp8
        layer.keys[role] = key
    return file


def _plain_name(name: str, underscored: Mapping[str, str]) -> str:
    while (match := _PREFIXES.match(name)) is not None:
        name = name[match.end() :]
    if (match := _UNDERSCORED.match(name)) is None:
        return name
    name = name[match.end() :]
    if name in underscored:
        return underscored[name]
    name = name.replace("_", ".")
    for compound in sorted(_COMPOUND, key=len, reverse=True):
        name = re.sub(rf"(?<![^.]){re.escape(compound.replace('_', '.'))}(?![^.])", compound, name)
    return name


def _settings(path: Path) -> dict[str, Any]:
    """PEFT's settings in the file's header, as far as they decide how strong a layer's change is."""
    values = parse_json(read_header(path), str(path), max_bytes=100_000_000)
    metadata = values.get("__metadata__") if isinstance(values, dict) else None
    text = metadata.get("lora_adapter_metadata") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        return {}
    found = parse_json(text, f"{path}: lora_adapter_metadata", remedy="take the file as it was trained")
    if not isinstance(found, dict):
        return {}
    named = {str(key).removeprefix("transformer."): value for key, value in found.items()}
    return {key: named[key] for key in ("r", "lora_alpha", "alpha_pattern", "use_rslora") if key in named}


def find_targets(
    file: LoraFile, parameters: Collection[str], class_name: str, config: Mapping[str, Any]
) -> list[Target]:
    """Return which parameters a file changes, under diffusers' names; what has none is added to `file.left_out`.

    Raises:
        InputError: if the names cannot be converted.
    """
    import torch

    sources: dict[str, tuple[Layer, int]] = {}
    for layer in file.layers.values():
        for name, rows in _changed(layer):
            sources[name] = (layer, rows)
    direct = sum(name in parameters for name in sources)
    convert = converter_for(class_name, config) if direct < len(sources) / 2 else None
    made: dict[str, list[Rows]] = {name: [Rows(name, 0, rows)] for name, (_, rows) in sources.items()}
    if convert is not None:
        made = trace({name: rows for name, (_, rows) in sources.items()}, convert, f"model.lora: {file.path}")
    targets = []
    for name, runs in made.items():
        layer, total = sources[runs[0].source]
        if name in parameters:
            order = torch.cat([torch.arange(run.first, run.last) for run in runs])
            is_whole = len(order) == total and len(runs) == 1
            targets.append(Target(name, layer, None if is_whole else order))
    return targets


def note_unused(file: LoraFile, targets: Collection[Target]) -> None:
    """Note the tensors of a file that no target uses."""
    used = {(id(target.layer), kind_of(target.parameter)) for target in targets}
    for layer in file.layers.values():
        for role, key in layer.keys.items():
            if not {(id(layer), kind) for kind in (_KIND_OF_ROLE.get(role, "weight"), "table")} & used:
                file.left_out.setdefault("of layers that this model lacks", []).append(key)


def leave_out(file: LoraFile, target: Target, reason: str) -> None:
    """Note the tensors that would make one change, which is not made."""
    kind, keys = kind_of(target.parameter), target.layer.keys
    roles = [role for role in keys if _KIND_OF_ROLE.get(role, "weight") == kind or kind == "table"]
    file.left_out.setdefault(reason, []).extend(keys.pop(role) for role in roles)


def kind_of(parameter: str) -> str:
    """Return "bias", "table" or "weight"."""
    if parameter.endswith("scale_shift_table"):
        return "table"
    return "bias" if parameter.endswith(".bias") else "weight"


_KIND_OF_ROLE = {"diff_b": "bias", "B_bias": "bias", "diff_m": "table"}


def _changed(layer: Layer) -> list[tuple[str, int]]:
    """The original parameters that a layer's tensors change, with their numbers of rows."""
    tensors, name, found = layer.tensors, layer.name, []
    rows = next(
        (len(tensors[role]) for role in ("B", "hada_w1_a", "diff") if role in tensors and tensors[role].ndim), 0
    )
    if any(role.startswith("lokr") for role in tensors):
        sizes = [next((len(tensors[r]) for r in (f"lokr_{w}", f"lokr_{w}_a") if r in tensors), 0) for w in ("w1", "w2")]
        rows = sizes[0] * sizes[1]
    if rows:
        is_table = name.endswith(("modulation", "scale_shift_table"))
        found.append((name if is_table else f"{name}.weight", rows))
    bias = tensors.get("diff_b", tensors.get("B_bias"))
    if bias is not None and bias.ndim:
        found.append((f"{name}.bias", len(bias)))
    if "diff_m" in tensors and tensors["diff_m"].ndim:
        found.append((name if name.endswith("modulation") else f"{name}.modulation", len(tensors["diff_m"])))
    return found

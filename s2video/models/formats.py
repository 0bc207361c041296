"""What a file of weights is, from the names of its tensors: for a person who gave it in the wrong place.

Imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .weight_files import PICKLES, WeightFile, index_of, read_weight_file

_DIFFUSERS = "in diffusers' names"
_MAX_FILES = 200  # that are looked at in a folder


class _Kind(NamedTuple):
    """A kind of file: known by parts of names, all of which some tensor's name must contain."""

    title: str
    setting: str
    marks: tuple[str, ...]


_KINDS = (
    _Kind("a LoRA", "model.lora", ("lora_",)),
    _Kind("a LoRA (LoKr)", "model.lora", (".lokr_w",)),
    _Kind("a LoRA (LoHa)", "model.lora", (".hada_w",)),
    _Kind("a whole model of ComfyUI", "model.transformer", ("model.diffusion_model.", "text_encoders.")),
    _Kind("a Wan transformer in Wan's original names", "model.transformer", ("self_attn.q.", "head.modulation")),
    _Kind("a HunyuanVideo transformer in its original names", "model.transformer", ("double_blocks.0.", "img_in.")),
    _Kind(f"a Wan transformer {_DIFFUSERS}", "model.transformer", ("condition_embedder.", "attn1.to_q.")),
    _Kind(f"a HunyuanVideo transformer {_DIFFUSERS}", "model.transformer", ("context_embedder.", "transformer_blocks")),
    _Kind("Wan's VAE in its original names", "model.vae", ("decoder.middle.0.residual.",)),
    _Kind(f"a VAE {_DIFFUSERS}", "model.vae", ("decoder.mid_block.", "decoder.conv_in.")),
    _Kind("a T5 text encoder", "model.text_encoder", ("SelfAttention.q.", "block.0.layer.0")),
    _Kind(
        "Wan's T5 text encoder in Wan's original names", "model.text_encoder", ("token_embedding.", "pos_embedding.")
    ),
    _Kind("a T5 text encoder in llama.cpp's names", "model.text_encoder", ("enc.blk.0.attn_q.",)),
    _Kind("a language model in llama.cpp's names", "model.text_encoder", ("blk.0.attn_q.", "token_embd.")),
    _Kind("an image encoder", "the folder image_encoder/", ("vision_model.",)),
    _Kind("a LLaMA text encoder", "model.text_encoder", ("layers.0.self_attn.q_proj.",)),
)


def look_of(names: Collection[str]) -> str | None:
    """Return what tensors with these names look like ("a Wan transformer in Wan's original names"), or None."""
    kind = _kind_of(names)
    return None if kind is None else kind.title


def refuse_as_model(path: Path) -> None:
    """Raise InputError that says what a file or folder is that was given as `model.path`, and which setting takes it.

    Return if the path holds no weights that could be recognized.
    """
    files = [path] if path.is_file() else _weights_below(path)
    if not files:
        return
    found = [(file, _what(file)) for file in files]
    said = "; ".join(f"{file.relative_to(path) if file != path else file.name} is {what}" for file, what in found[:4])
    more = f"; and {len(found) - 4} more files" if len(found) > 4 else ""
    whole = "a file" if path.is_file() else "a folder without model_index.json"
    if path.is_dir() and (path / "config.json").is_file() and index_of(path.parent).is_file():
        raise InputError(
            f"model.path: expected a folder in diffusers' format, got {path}, a component of one; set model.path to "
            f"{path.parent}"
        )
    raise InputError(
        f"model.path: expected a folder in diffusers' format or a Hub id, got {whole} ({path}): {said}{more}; set "
        "model.path to that model in diffusers' format, and name such files in model.transformer, model.vae, "
        "model.text_encoder or model.lora"
    )


def _what(file: Path) -> str:
    """What a file is, with the setting for it; never raises for a file that cannot be read."""
    if file.suffix in PICKLES:
        return "a pickle, which can contain code and is never loaded (take its .safetensors version)"
    try:
        opened = read_weight_file(file, file.name)
    except InputError as error:
        return f"not readable ({str(error).removeprefix(f'{file}: ')})"
    kind = _kind_of(opened.tensors)
    form = ", GGUF" if opened.is_gguf else ""
    if kind is None:
        return f"of an unknown kind ({len(opened.tensors)} tensors{form})"
    return f"{kind.title} ({len(opened.tensors)} tensors{form}), for {kind.setting}"


def _kind_of(names: Collection[str]) -> _Kind | None:
    for kind in _KINDS:
        if all(any(mark in name for name in names) for mark in kind.marks):
            return kind
    return None


def _weights_below(folder: Path) -> list[Path]:
    """Weight files in a folder and in the folders in it, the first of each set of shards only."""
    found: Iterable[Path] = (path for pattern in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(pattern)))
    kept = []
    for path in found:
        is_first = "-of-" not in path.name or "-00001-of-" in path.name
        if path.suffix in (".safetensors", ".gguf", *PICKLES) and is_first and path.is_file():
            kept.append(path)
        if len(kept) >= _MAX_FILES:
            break
    return kept


def formats_of(files: Collection[WeightFile]) -> str:
    """Return the number formats of weight files with the number of tensors of each: "Q4_K 280, F32 815"."""
    counts: dict[str, int] = {}
    for file in files:
        for tensor in file.tensors.values():
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + 1
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))

"""Last stage of an embedded model: a diffusers Wan pipeline folder in float16, with a model card."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from torch import Tensor, nn

from .caption_encoder import build_tokenizer
from .designs import Design
from .train_vae import build_vae
from .world import HELD_OUT

FLOW_SHIFT = 3.0

_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---

# {name}

A small text-to-video model of the Wan architecture, trained from scratch on procedurally rendered clips of one or two
moving shapes (64x64 pixels, 17 frames). `s2video` runs it, and `diffusers.WanPipeline.from_pretrained` loads this
folder as it is.

Captions read "a small red circle moving left and a large blue square moving up on a gray background":

{vocabulary}

Other words are unknown to it. Text is padded to {max_sequence_length} tokens, as in training:
pass `max_sequence_length={max_sequence_length}`.

## Kept out of training

Shapes with one of these {num_held_out} (colour, shape, direction) triples appear in no training clip of any stage;
every pair of values does:

{held_out}

## Training

Made by `{command}` (seed {seed}, device {device}, torch {torch}).

| stage | what | steps x batch | final losses | time |
|---|---|---|---|---|
{stages}

The time of a stage is what its process took, on a machine that did other work as well. Components: {sizes}; in all
{megabytes:.1f} MB as float16 safetensors.
"""


def export(
    design: Design,
    vae: AutoencoderKLWan,
    models: nn.ModuleDict,
    mean: Tensor,
    std: Tensor,
    folder: Path,
    *,
    card: dict[str, Any],
) -> None:
    """Write the pipeline to `folder` (replaced whole), and the card beside the weights.

    Raises:
        RuntimeError: where the weights take more than the design allows; the older folder stays.
    """
    shipped = build_vae(design, latents_mean=mean.tolist(), latents_std=std.tolist())
    shipped.load_state_dict(vae.state_dict())
    components = {
        "text_encoder": models["text_encoder"],
        "transformer": models["transformer"],
        "vae": shipped,
    }
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
        ),
        **{name: module.to("cpu", torch.float16) for name, module in components.items()},
    )
    components["transformer"].register_to_config(_name_or_path="")  # or a folder of this machine would be shipped
    pipeline.save_pretrained(temporary, safe_serialization=True)
    size = sum(file.stat().st_size for file in temporary.rglob("*.safetensors"))
    if size > design.max_bytes:
        raise RuntimeError(f"{temporary}: weights of {size} bytes, at most {design.max_bytes} may ship")
    counts = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in components.items()}
    held_out = "\n".join(f"- {color} {shape} moving {direction}" for color, shape, direction in sorted(HELD_OUT))
    text = _CARD.format(
        **card,
        name=design.name,
        held_out=held_out,
        num_held_out=len(HELD_OUT),
        sizes=", ".join(f"{name} {count:.2f} M parameters" for name, count in counts.items()),
        megabytes=size / 1e6,
    )
    (temporary / "README.md").write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)

"""A checkpoint of Wan that is wide enough for blocks of GGUF, and its transformer in such files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import original_names as original
import tiny
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from original_names import State
from shapes.caption_encoder import build_tokenizer
from tiny import MAX_SEQUENCE_LENGTH, PROMPT
from torch import Tensor, nn

from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.models.checkpoint import open_checkpoint
from s2video.models.loading import load_conditioners, load_transformer, load_vae

SIZE = {"width": 32, "height": 32, "num_frames": 1, "num_inference_steps": 2}
CPU = torch.device("cpu")
Q8 = gguf.GGMLQuantizationType.Q8_0


def wide_transformer() -> WanTransformer3DModel:
    """Wide enough for the blocks of GGUF's K-quants, which have 256 numbers."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        text_dim=128,
        freq_dim=32,
        ffn_dim=256,
        num_layers=2,
        rope_max_seq_len=64,
    )


@dataclass
class Wide:
    """A checkpoint in diffusers' format, the states of its components, and what it makes."""

    folder: Path
    states: dict[str, State]
    latents: Tensor
    frames: Tensor

    def config(self, **model: Any) -> RunConfig:
        return build_config(
            {
                "model": {"path": str(self.folder), "device": "cpu", **model},
                "sampling": {**SIZE, "max_sequence_length": MAX_SEQUENCE_LENGTH},
                "guidance": {"window": [0, 1]},
            }
        )

    def loaded(self, component: str, **model: Any) -> nn.Module:
        checkpoint = open_checkpoint(*self.config(**model).model.source)
        if component == "vae":
            return load_vae(checkpoint, torch.float32, CPU)
        if component == "text_encoder":
            return load_conditioners(checkpoint, torch.float32)[component]
        return load_transformer(checkpoint, torch.float32, CPU, component)

    def made(self, **model: Any) -> tuple[Tensor, Tensor | None]:
        """Latents, and frames if the VAE is the one in question."""
        engine = Engine(self.config(**model))
        latents = engine.sample([PROMPT], [3])
        return latents, torch.cat(list(engine.decode(latents))) if "vae" in model else None


def build_wide(folder: Path) -> Wide:
    """Save the checkpoint into a folder, and make a video with it."""
    torch.manual_seed(0)
    parts = {
        "text_encoder": tiny.tiny_text_encoder(),
        "vae": AutoencoderKLWan(base_dim=8).eval(),
        "transformer": wide_transformer().eval(),
    }
    WanPipeline(tokenizer=build_tokenizer(), scheduler=tiny.build_scheduler(), **parts).save_pretrained(folder)
    states = {name: dict(part.state_dict()) for name, part in parts.items()}
    states["text_encoder"].pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    found = Wide(folder, states, torch.empty(0), torch.empty(0))
    engine = Engine(found.config())
    found.latents = engine.sample([PROMPT], [3])
    found.frames = torch.cat(list(engine.decode(found.latents)))
    return found


def gguf_of(names: Callable[[State], State], arch: str, kind: Any, **how: Any) -> Callable[[State, Path], Path]:
    """Matrices in `kind`, everything else in F16 or, where it is small, in F32."""

    def quantize(name: str, value: Tensor) -> Any:
        is_matrix = value.ndim == 2 and value.shape[1] % 32 == 0 and min(value.shape) > 8
        return kind if is_matrix else gguf.GGMLQuantizationType.F32

    return lambda state, folder: original.write_gguf(names(state), folder / "x.gguf", arch, quantize, **how)

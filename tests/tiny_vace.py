"""Wan VACE in miniature: control of every kind, alone and together, and two transformers as Wan 2.2 has them.

Hints after the first, third and fifth of six blocks. The mask is soft, which its own latents keep, and those of the
video round.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from PIL import Image
from shapes.caption_encoder import build_tokenizer
from tiny import MAX_SEQUENCE_LENGTH, NUM_BLOCKS, SIZE, Z_DIM, build_scheduler, build_vae, tiny_text_encoder
from tiny_wan_i2v import image
from torch import Tensor, nn

from s2video.config.run import RunConfig, build_config
from s2video.models.base import Conditioning
from s2video.models.control import Control

HINTS_AT = [0, 2, 4]
CONTROL_CHANNELS = 2 * Z_DIM + 64
SCALES = [0.7, 1.3, 0.4]


class Skipped(nn.Module):
    """In place of a block: hands the tokens on."""

    def forward(self, hidden_states: Tensor, *_: Any) -> Tensor:
        return hidden_states


def build_transformer(seed: int = 0, num_blocks: int = NUM_BLOCKS) -> WanVACETransformer3DModel:
    torch.manual_seed(seed)
    model = WanVACETransformer3DModel(
        num_attention_heads=5,
        attention_head_dim=12,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        text_dim=128,
        freq_dim=32,
        ffn_dim=96,
        num_layers=num_blocks,
        rope_max_seq_len=64,
        vace_layers=[index for index in HINTS_AT if index < num_blocks],
        vace_in_channels=CONTROL_CHANNELS,
    )
    return model.eval().requires_grad_(False)


def frames(seed: int, count: int = SIZE["num_frames"]) -> tuple[Image.Image, ...]:
    """Pictures of the video's size, each another one."""
    return tuple(image(100 * seed + number) for number in range(count))


def soft_mask(seed: int, count: int = SIZE["num_frames"]) -> tuple[Image.Image, ...]:
    generator = np.random.default_rng(seed)
    size = SIZE["width"], SIZE["height"]
    coarse = generator.integers(0, 256, (count, 5, 7), dtype=np.uint8)
    return tuple(Image.fromarray(rows).resize(size, Image.Resampling.NEAREST) for rows in coarse)


@dataclass(frozen=True)
class Kind:
    """What a run is given."""

    control: Control | None
    scale: float | list[float] = 1.0
    boundary_ratio: float | None = None

    def build_checkpoint(self, folder: Path) -> Path:
        WanVACEPipeline(
            tokenizer=build_tokenizer(),
            text_encoder=tiny_text_encoder(),
            vae=build_vae(),
            scheduler=build_scheduler(),
            transformer=build_transformer(),
            transformer_2=build_transformer(seed=1) if self.boundary_ratio else None,
            boundary_ratio=self.boundary_ratio,
        ).save_pretrained(folder)
        return folder

    def config(self, checkpoint: Path, **guidance: Any) -> RunConfig:
        second = {"cfg_scale_2": 2.0} if self.boundary_ratio and guidance.get("cfg_scale") != 1 else {}
        return build_config(
            {
                "model": {"path": str(checkpoint), "device": "cpu"},
                "control": {"scale": self.scale},
                "sampling": {**SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
                "guidance": {"drop_ratio": 0.3, "window": (0.2, 0.8), **guidance} | second,
            }
        )

    def arguments(self) -> dict[str, Any]:
        """What diffusers' pipeline is given."""
        control = self.control or Control()
        return {
            "video": list(control.video) or None,
            "mask": list(control.mask) or None,
            "reference_images": list(control.references) or None,
            "conditioning_scale": self.scale,
        }

    def reference(self, checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int) -> Tensor:
        """Without the frames of references, which its decoding leaves out."""
        pipeline = WanVACEPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(
            prompt,
            negative,
            **self.arguments(),
            **SIZE,
            num_inference_steps=config.sampling.num_inference_steps,
            guidance_scale=config.guidance.cfg_scale,
            guidance_scale_2=config.guidance.cfg_scale_2,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=config.sampling.max_sequence_length,
            output_type="latent",
        ).frames
        return latents[:, :, len((self.control or Control()).references) :]


def conditioning(transformer: WanVACETransformer3DModel, seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(2, MAX_SEQUENCE_LENGTH, transformer.config.text_dim, generator=generator)
    return Conditioning(text, control_scales=torch.tensor(SCALES))


def forward(transformer: WanVACETransformer3DModel, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
    noisy, control = latents.split((Z_DIM, CONTROL_CHANNELS), dim=1)
    return transformer(
        noisy,
        timestep,
        told.text,
        control_hidden_states=control,
        control_hidden_states_scale=told.control_scales,
        return_dict=False,
    )[0]


def leave_out(transformer: nn.Module, name: str, index: int) -> None:
    """Exchange a block, so that the hints stay where they are."""
    blocks: Any = transformer.get_submodule(name)
    blocks[index] = Skipped()


KINDS = {
    "wan-vace": Kind(Control(frames(1), soft_mask(1), (image(7, (60, 90)), image(8, (112, 80)))), scale=SCALES),
    "wan2.2-vace": Kind(Control(frames(2)), scale=0.6, boundary_ratio=0.9),
}
UNCONTROLLED = Kind(None)

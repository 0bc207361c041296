"""A Wan checkpoint in miniature, with random weights, in the folder format of the real one.

Five heads and 175 tokens: neither divides by 2 or by 3.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from shapes.caption_encoder import build_text_encoder, build_tokenizer
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from s2video.config.run import RunConfig, build_config
from s2video.models.base import Conditioning

NUM_BLOCKS = 6
Z_DIM, RESIDUAL_Z_DIM = 16, 20  # of the VAE's two forms
SIZE = {"width": 112, "height": 80, "num_frames": 17}  # latents 5 x 10 x 14, tokens 5 x 5 x 7
MAX_SEQUENCE_LENGTH = 32
PROMPT = "a small red circle moving left on a gray background"


def build_transformer(num_blocks: int = NUM_BLOCKS, seed: int = 0, channels: int = Z_DIM) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        num_attention_heads=5,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=128,
        freq_dim=32,
        ffn_dim=96,
        num_layers=num_blocks,
        rope_max_seq_len=64,
    )
    return model.eval().requires_grad_(False)


def build_vae(seed: int = 0, *, residual: bool = False) -> AutoencoderKLWan:
    """The form of Wan 2.1, 8 x in space; or the residual one of Wan 2.2 5B, 16 x, of which 2 x are patches."""
    torch.manual_seed(seed)
    form: dict[str, Any] = {"z_dim": Z_DIM}
    if residual:
        form = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        form |= {"z_dim": RESIDUAL_Z_DIM, "scale_factor_spatial": 16}
        form |= {"latents_mean": [0.1 * i for i in range(RESIDUAL_Z_DIM)], "latents_std": [0.5] * RESIDUAL_Z_DIM}
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **form)
    return vae.eval().requires_grad_(False)


def tiny_text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(0)
    encoder = build_text_encoder()
    for module in encoder.modules():  # fresh T5 weights give embeddings far larger than any real encoder's
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    return encoder.eval()


def build_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def build_checkpoint(folder: Path) -> Path:
    WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=build_vae(),
        scheduler=build_scheduler(),
        transformer=build_transformer(),
    ).save_pretrained(folder)
    return folder


def random_lora(transformer: nn.Module, *, layers: str = "attn", rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA of all linear layers whose names hold `layers`, as strong as the weights, under diffusers' keys."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and layers in name:
            key, scale = f"transformer.{name}", module.in_features**-0.25
            made[f"{key}.lora_A.weight"] = scale * torch.randn(rank, module.in_features, generator=generator)
            made[f"{key}.lora_B.weight"] = scale * torch.randn(module.out_features, rank, generator=generator)
    return made


def tiny_config(checkpoint: Path, *, lora: Sequence[dict[str, Any]] = (), **guidance: Any) -> RunConfig:
    return build_config(
        {
            "model": {"path": str(checkpoint), "device": "cpu", "lora": list(lora)},
            "sampling": {**SIZE, "num_inference_steps": 6, "max_sequence_length": MAX_SEQUENCE_LENGTH},
            "guidance": {"drop_ratio": 0.3, **guidance},
        }
    )


def job(config: RunConfig, output: Path, *, seed: int = 3, keep_latents: bool = False) -> RunConfig:
    """What makes one video of PROMPT with these settings."""
    changes = {"prompt": PROMPT, "sampling.seed": seed, "output": {"path": str(output), "keep_latents": keep_latents}}
    return config.patched(changes)


def reference(checkpoint: Path, config: RunConfig, prompt: str, negative: str, seed: int) -> Tensor:
    """The latents of diffusers' own pipeline."""
    pipeline = WanPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt,
        negative,
        **SIZE,
        num_inference_steps=config.sampling.num_inference_steps,
        guidance_scale=config.guidance.cfg_scale,
        guidance_scale_2=config.guidance.cfg_scale_2,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=config.sampling.max_sequence_length,
        output_type="latent",
    ).frames


def conditioning(transformer: WanTransformer3DModel, seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(2, MAX_SEQUENCE_LENGTH, transformer.config.text_dim, generator=generator))


def forward(transformer: WanTransformer3DModel, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
    return transformer(latents, timestep, told.text, return_dict=False)[0]

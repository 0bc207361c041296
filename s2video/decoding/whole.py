"""Latents -> frames through Wan's video VAE, one latent frame at a time, on one rank.

Wan's decoder is causal and keeps a cache of features, so frames can leave as they are made: memory does not grow with
the length of the video, and the result is bitwise that of `vae.decode`.

Dimension letters: C latent channels, T H W latent frames, rows, columns, s pixels of a row or column, t frames of a
chunk.
"""

from collections.abc import Generator
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

VideoVae: TypeAlias = AutoencoderKLWan | AutoencoderKLHunyuanVideo | AutoencoderKLHunyuanVideo15


@torch.no_grad()
def decode_frames(vae: AutoencoderKLWan, latents: Tensor) -> Generator[Tensor, None, None]:
    """Yield chunks [t, H·s, W·s, 3] of float32 in [0, 1] on the CPU: 1 frame, then `temporal factor` at a time.

    Args:
        latents: [1, C, T, H, W] as the transformer sees them; they are de-normalised here.
    """
    for chunk in decode_chunks(vae, denormalize(vae, latents)):
        yield to_frames(chunk).cpu()


def decode_chunks(vae: AutoencoderKLWan, z: Tensor) -> Generator[Tensor, None, None]:
    """The VAE's own latents [1, C, T, H, W] -> chunks [1, 3, t, H·s, W·s], in [−1, 1] but for overshoot."""
    vae.clear_cache()
    try:
        for frame in z.split(1, dim=2):
            yield unpatched(vae, decode_latent_frame(vae, frame, vae._feat_map))
    finally:
        vae.clear_cache()


def decode_latent_frame(vae: AutoencoderKLWan, z: Tensor, cache: list[Any]) -> Tensor:
    """One latent frame [1, C, 1, H, W] -> its frames as the decoder gives them.

    `cache` is that of the frames before, changed in place; one of nothing but None makes this the first frame.
    """
    # the decoder counts its convolutions through the cache, anew for each call
    chunk: Tensor = vae.decoder(vae.post_quant_conv(z), feat_cache=cache, feat_idx=[0], first_chunk=cache[0] is None)
    return chunk


def unpatched(vae: AutoencoderKLWan, chunk: Tensor) -> Tensor:
    """[1, 3·p², t, h, w] -> [1, 3, t, h·p, w·p], p being the patch size of the VAE's residual form, or else 1."""
    frames: Tensor = unpatchify(chunk, patch_size=vae.config.patch_size or 1)
    return frames


def to_frames(chunk: Tensor) -> Tensor:
    """[1, 3, t, h, w] around [−1, 1] -> float32 [t, h, w, 3] in [0, 1]."""
    frames = chunk.clamp(-1, 1)[0].permute(1, 2, 3, 0)
    return (frames / 2 + 0.5).clamp(0, 1).float()


def denormalize(vae: VideoVae, latents: Tensor) -> Tensor:
    """The transformer's latents, of deviation 1 -> the VAE's own, on its device and in its dtype."""
    latents = latents.to(vae.device, vae.dtype)
    if not isinstance(vae, AutoencoderKLWan):
        return latents / vae.config.scaling_factor
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents / (1.0 / std) + mean  # WanPipeline's order of operations, to the bit

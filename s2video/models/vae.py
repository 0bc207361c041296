"""Latents -> frames: through Wan's video VAE one latent frame at a time, through HunyuanVideo's in tiles.

Wan's decoder is causal and keeps a cache of features, so frames can leave as they are made: memory does not grow with
the length of the video, and the result is bitwise that of `vae.decode`.

Dimension letters: C latent channels, T H W latent frames, rows, columns, t frames of a chunk.
"""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor


@torch.no_grad()
def decode_frames(vae: AutoencoderKLWan, latents: Tensor) -> Iterator[Tensor]:
    """Yield chunks [t, H·s, W·s, 3] of float32 in [0, 1] on the CPU: 1 frame, then `temporal factor` at a time.

    Args:
        latents: [1, C, T, H, W] as the transformer sees them; they are de-normalised here.
    """
    z = denormalize(vae, latents.to(vae.device, vae.dtype))
    vae.clear_cache()
    try:
        for index in range(z.shape[2]):
            hidden = vae.post_quant_conv(z[:, :, index : index + 1])
            vae._conv_idx = [0]  # the decoder counts its convolutions through the cache, anew for each call
            chunk = vae.decoder(hidden, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0)
            if vae.config.patch_size is not None:
                chunk = unpatchify(chunk, patch_size=vae.config.patch_size)
            frames = chunk.clamp(-1, 1)[0].permute(1, 2, 3, 0)
            yield (frames / 2 + 0.5).clamp(0, 1).float().cpu()
    finally:
        vae.clear_cache()


@torch.no_grad()
def decode_in_tiles(vae: AutoencoderKLHunyuanVideo, latents: Tensor) -> Iterator[Tensor]:
    """Yield the same chunks as `decode_frames`, after the VAE's own tiled decoding of the whole video.

    Args:
        latents: [1, C, T, H, W] as the transformer sees them; they are scaled here.
    """
    vae.enable_tiling()  # its attention over a whole 720p frame batch would need more memory than a GPU has
    z = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    video = vae.decode(z, return_dict=False)[0][0]
    for chunk in video.split([1] + [vae.temporal_compression_ratio] * (z.shape[2] - 1), dim=1):
        yield (chunk.permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1).float().cpu()


def denormalize(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The transformer's latents, of mean 0 and deviation 1 in each channel -> the VAE's own."""
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents / (1.0 / std) + mean  # WanPipeline's order of operations, to the bit

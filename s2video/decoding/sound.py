"""Latents of a video with sound: both in one tensor while they are denoised, and the sound's own decoder.

A sampler works on one tensor [B, C, T, H, W]. The sound's rows follow the picture's latent frames in it, as further
frames that are filled row by row; what is left of the last one is zero, and stays so under every operation on single
numbers.

Dimension letters: B batch, C latent channels, T H W latent frames, rows, columns of the picture, R rows of sound,
D_sound numbers in a row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import SoundShape
from ..media.sound import Sound


def join_sound(video: Tensor, rows: Tensor) -> Tensor:
    """Return one tensor for latents [B, C, T, H, W] of the picture and rows [B, R, D_sound] of sound."""
    batch, channels, _, height, width = video.shape
    cells = channels * height * width
    flat = rows.flatten(1)
    frames = -(-flat.shape[1] // cells)
    flat = F.pad(flat, (0, frames * cells - flat.shape[1]))
    carriers = flat.view(batch, frames, channels, height, width).transpose(1, 2)
    return torch.cat((video, carriers.to(video.dtype)), dim=2)


def split_sound(latents: Tensor, sound: SoundShape) -> tuple[Tensor, Tensor]:
    """Return the latents [B, C, T, H, W] of the picture and the rows [B, R, D_sound] of sound of one tensor.

    Raises:
        ValueError: it does not have the shape of a picture with sound.
    """
    _, channels, total, height, width = latents.shape
    frames = sound.latent_frames(total, channels * height * width)
    flat = latents[:, :, frames:].transpose(1, 2).flatten(1)
    rows = flat[:, : sound.num_rows(frames) * sound.width].unflatten(1, (-1, sound.width))
    return latents[:, :, :frames], rows


@torch.no_grad()
def decode_sound(vae: Any, rows: Tensor, channels: int) -> Sound:
    """Decode rows [1, R, D_sound] of one video, as the transformer uses them, with a VAE of sound.

    The VAE is mono: its batch is the channels, whose rows follow each other.
    """
    latents = rows[0].unflatten(0, (channels, -1)).transpose(1, 2).to(vae.device)
    mean, std = (
        torch.tensor(values, device=latents.device).view(1, -1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    waves: Tensor = vae.decode(latents * std + mean, return_dict=False)[0]
    return Sound(waves[:, 0].float().cpu(), int(vae.config.sampling_rate))

"""Decoding with Wan's video VAE on one rank, one latent frame at a time.

Wan's decoder is causal and caches features, so frames can be yielded early. Memory does not grow with the length of the
video, and the result is bitwise that of `vae.decode`.

Dimension letters: C latent channels; T, H, W latent frames, rows, columns; s pixels per latent row or column; t frames
of a chunk.
"""

from collections.abc import Generator, Iterator
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

VideoVae: TypeAlias = AutoencoderKLWan | AutoencoderKLHunyuanVideo | AutoencoderKLHunyuanVideo15

_LARGEST_PINNED = 2**28  # bytes; a larger chunk is one of few, and pinning its buffer would take longer than its copy


@torch.no_grad()
def decode_frames(vae: AutoencoderKLWan, latents: Tensor) -> Generator[Tensor, None, None]:
    """Yield float32 chunks [t, H·s, W·s, 3] in [0, 1] on the CPU: 1 frame, then `temporal factor` frames each.

    Args:
        latents: [1, C, T, H, W] as the transformer uses them; this function denormalizes them.
    """
    yield from on_cpu(map(to_frames, decode_chunks(vae, denormalize(vae, latents))), vae.device)


def decode_chunks(vae: AutoencoderKLWan, z: Tensor) -> Generator[Tensor, None, None]:
    """Decode the VAE's own latents [1, C, T, H, W] to chunks [1, 3, t, H·s, W·s] in [−1, 1], with some overshoot.

    The features of the frames before belong to this call, so that another one can start before it ends.
    """
    cache = new_cache(vae)
    for frame in z.split(1, dim=2):
        yield unpatched(vae, decode_latent_frame(vae, frame, cache))


def new_cache(vae: AutoencoderKLWan) -> list[Any]:
    """Return the features before the first frame; the VAE's own list is shared by all who use the VAE."""
    return [None] * vae._cached_conv_counts["decoder"]


def decode_latent_frame(vae: AutoencoderKLWan, z: Tensor, cache: list[Any]) -> Tensor:
    """Decode one latent frame [1, C, 1, H, W] to the decoder's raw output.

    Args:
        cache: the features of the previous frames, changed in place. All None for the first frame.
    """
    # feat_idx is the decoder's counter of convolutions; it starts at 0 for each call
    chunk: Tensor = vae.decoder(vae.post_quant_conv(z), feat_cache=cache, feat_idx=[0], first_chunk=cache[0] is None)
    return chunk


def unpatched(vae: AutoencoderKLWan, chunk: Tensor) -> Tensor:
    """Unfold patches: [1, 3·p², t, h, w] -> [1, 3, t, h·p, w·p], with the VAE's patch size p, or 1 if it has none."""
    frames: Tensor = unpatchify(chunk, patch_size=vae.config.patch_size or 1)
    return frames


def to_frames(chunk: Tensor) -> Tensor:
    """Convert [1, 3, t, h, w] around [−1, 1] to float32 [t, h, w, 3] in [0, 1].

    Computed in float32: in bfloat16, adding 0.5 would round to steps of 1/256, in float16 to 1/2048.
    """
    frames = chunk.float().clamp(-1, 1)[0].permute(1, 2, 3, 0)
    return (frames / 2 + 0.5).clamp(0, 1)


def on_cpu(chunks: Iterator[Tensor | None], device: torch.device) -> Generator[Any, None, None]:
    """Yield the chunks in CPU memory, and None for None.

    From a GPU, each chunk is copied while the next one is computed, so the first chunk comes when the second one is
    queued. Ranks that decode together all do so, because they must take equal steps.
    """
    if device.type != "cuda":
        for chunk in chunks:
            yield None if chunk is None else chunk.cpu()
        return
    copies, before = [_PinnedCopy(), _PinnedCopy()], None
    for number, chunk in enumerate(chunks):
        copy = copies[number % 2]
        copy.start(chunk)
        if before is not None:
            yield before.result()
        before = copy
    if before is not None:
        yield before.result()


class _PinnedCopy:
    """A copy from the GPU to a buffer that is used again."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._queued: tuple[Tensor, torch.cuda.Event] | None = None  # the part of the buffer, and when it is filled
        self._copied: Tensor | None = None

    def start(self, chunk: Tensor | None) -> None:
        """Queue the copy of a chunk on the current stream."""
        self._queued = self._copied = None
        if chunk is None:
            return
        if chunk.nbytes > _LARGEST_PINNED:
            self._copied = chunk.cpu()
            return
        if chunk.numel() > self._buffer.numel():
            self._buffer = torch.empty(chunk.numel(), dtype=chunk.dtype).pin_memory()
        part = self._buffer[: chunk.numel()].view(chunk.shape)
        part.copy_(chunk, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._queued = part, done

    def result(self) -> Tensor | None:
        """Wait for the copy, and return the chunk in memory of its own."""
        if self._queued is None:
            return self._copied
        part, done = self._queued
        done.synchronize()
        return part.clone()


def denormalize(vae: VideoVae, latents: Tensor) -> Tensor:
    """Convert the transformer's latents (standard deviation 1) to the VAE's own, on its device and in its dtype."""
    latents = latents.to(vae.device, vae.dtype)
    if not isinstance(vae, AutoencoderKLWan):
        return latents / vae.config.scaling_factor
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents / (1.0 / std) + mean  # the order of operations in WanPipeline, for a bitwise equal result

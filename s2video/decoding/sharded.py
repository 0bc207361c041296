"""Wan's VAE decoder on strips of the picture, one strip per rank, with the same result as on the whole picture.

The decoder is diffusers' module. During decoding, its submodules of three kinds are replaced. The two kinds of spatial
convolutions pad with the neighbours' rows, and with zeros only at the picture's border; the attention of the middle
block sees all strips. All other submodules work on each position alone.

Strips divide the longer side of the latents, rows or columns. Dimension letters as in `whole`; h, w of one strip.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d
from torch import Tensor, nn

from ..geometry import Shard, split_evenly
from ..parallel.collectives import collect_parts, gather_tokens
from ..parallel.halo import fill_halos
from ..parallel.mesh import Axis
from .whole import decode_chunks, denormalize, on_cpu, to_frames

ROWS, COLUMNS = -2, -1  # of [..., H, W]


@torch.no_grad()
def decode_sharded(vae: AutoencoderKLWan, latents: Tensor, axis: Axis) -> Generator[Tensor | None, None, None]:
    """Yield the chunks of `decode_frames`, up to rounding, on rank 0, and the same number of None on other ranks.

    Args:
        latents: [1, C, T, H, W], the same on all ranks, as the transformer uses them.
        axis: the ranks that decode, at most as many as the latents' longer side has rows or columns.
    """
    # A square is split by columns: on a CPU, torch chooses the slow 3D convolution for few channels · frames · rows.
    dim = ROWS if latents.shape[ROWS] > latents.shape[COLUMNS] else COLUMNS
    shards = split_evenly(latents.shape[dim], axis.size)
    own = shards[axis.rank]
    z = denormalize(vae, latents).narrow(dim, own.start, own.length)
    with _sharded(vae.decoder, dim, shards, axis):
        yield from on_cpu((_joined(chunk, dim, shards, axis) for chunk in decode_chunks(vae, z)), vae.device)


def _joined(chunk: Tensor, dim: int, shards: Sequence[Shard], axis: Axis) -> Tensor | None:
    """Return the frames of all strips on rank 0: this rank's [1, 3, t, h, w] -> [t, H·s, W·s, 3]. None on others."""
    strip = to_frames(chunk)  # [t, h·s, w·s, 3]
    along, scale = dim - 1, chunk.shape[dim] // shards[axis.rank].length
    shapes = [list(strip.shape) for _ in shards]
    for shape, shard in zip(shapes, shards, strict=True):
        shape[along] = shard.length * scale
    strips = collect_parts([strip], [[shape] for shape in shapes], axis)
    return torch.cat([part for (part,) in strips], dim=along) if strips else None


@contextmanager
def _sharded(decoder: nn.Module, dim: int, shards: Sequence[Shard], axis: Axis) -> Iterator[None]:
    """Make the decoder work on this rank's strip along `dim` inside the `with`."""
    with ExitStack() as stack:
        for module in decoder.modules():
            if isinstance(module, WanCausalConv3d) and any(module._padding[:4]):
                stack.enter_context(_replaced(module, "_conv_forward", _causal_convolution(module, dim, axis)))
            elif isinstance(module, nn.Conv2d) and any(module.padding):
                stack.enter_context(_replaced(module, "_conv_forward", _convolution(module, dim, axis)))
            elif isinstance(module, WanAttentionBlock):
                stack.enter_context(_replaced(module, "forward", _attention(module, dim, shards, axis)))
        yield


@contextmanager
def _replaced(module: nn.Module, method: str, substitute: Callable[..., Tensor]) -> Iterator[None]:
    setattr(module, method, substitute)
    try:
        yield
    finally:
        delattr(module, method)  # the class's method is visible again


def _causal_convolution(module: Any, dim: int, axis: Axis) -> Callable[..., Tensor]:
    """Return a `_conv_forward` with halos. `WanCausalConv3d.forward` has already added its cache and zero padding."""
    width = module._padding[_first_pad(dim)]

    def convolve(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        fill_halos(padded, dim, width, axis)
        return type(module)._conv_forward(module, padded, weight, bias)

    return convolve


def _convolution(module: nn.Conv2d, dim: int, axis: Axis) -> Callable[..., Tensor]:
    height, width = (int(size) for size in module.padding)
    padding = (width, width, height, height)

    def convolve(strip: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = F.pad(strip, padding)
        fill_halos(padded, dim, padding[_first_pad(dim)], axis)
        return F.conv2d(padded, weight, bias, module.stride)

    return convolve


def _first_pad(dim: int) -> int:
    """Return the index of the padding before `dim` in `F.pad`'s list, which begins at the last dimension."""
    return 2 * (COLUMNS - dim)


def _attention(module: Any, dim: int, shards: Sequence[Shard], axis: Axis) -> Callable[..., Tensor]:
    """Return a `forward` that computes all strips on every rank; at the latents' resolution that is cheap."""
    own = shards[axis.rank]

    def attend(strip: Tensor) -> Tensor:
        whole = gather_tokens(strip.movedim(dim, 1), shards, axis).movedim(1, dim)
        attended: Tensor = type(module).forward(module, whole)
        return attended.narrow(dim, own.start, own.length)

    return attend

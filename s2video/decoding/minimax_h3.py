"""Decoding with MiniMax-H3's video VAE: clips of seven latent frames, each in overlapping tiles.

Its decoder is a vision transformer that sees a whole tile of a clip at once, so only tiles can be shared among ranks.
Rank 0 blends them, and consecutive clips. Cuts, overlaps and blending are the VAE's own, so the frames are bitwise
those of `vae.decode`, and they come clip by clip.

Dimension letters as in `whole`; h, w of one tile.
"""

from collections.abc import Generator, Iterator
from itertools import product
from typing import Any

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import Tensor

from ..parallel.collectives import collect_parts
from ..parallel.mesh import Axis
from .whole import on_cpu

# the VAE's pixels are normalized like those of ImageNet, and diffusers' pipeline has the numbers, not the VAE
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.no_grad()
def decode_clips(vae: Any, latents: Tensor, axis: Axis) -> Generator[Tensor | None, None, None]:
    """Yield float32 chunks [t, H·s, W·s, 3] in [0, 1] on rank 0's CPU, and the same number of None on other ranks.

    Args:
        latents: [1, C, T, H, W] of the picture, the same on all ranks, as the transformer uses them; T is one that
            the VAE makes of a video.
        axis: the ranks that decode; if there are more ranks than tiles, some are idle.
    """
    latents = latents.to(vae.device)
    mean, std = (
        torch.tensor(values, device=vae.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    z = (latents * std + mean).to(get_parameter_dtype(vae.post_quant_conv))
    frames = (None if picture is None else _to_frames(picture) for picture in _pictures(vae, z, axis))
    yield from on_cpu(frames, vae.device)


def _pictures(vae: Any, z: Tensor, axis: Axis) -> Iterator[Tensor | None]:
    """Yield [1, 3, t, H·s, W·s] for each clip, without the frames that the next one is blended with, then those."""
    length, ratio = vae.tokens_chunk_size, vae.temporal_compression_ratio
    ending: Tensor | None = None
    # the encoder drops `token_drop` latent frames at the end of a clip, which the next clip stands for
    for start in range(0, z.shape[2] + vae.config.token_drop - length, length):
        clip = _clip(vae, z[:, :, start : start + length + vae.token_overlap], axis)
        if clip is None:
            yield None
            continue
        own, after = (clip[:, :, at : at + length * ratio] for at in (0, length * ratio))
        own = own[:, :, vae.frame_pre_padding :]
        if ending is not None:
            own = vae._blend(ending, own, vae.frame_overlap, dim=-3)
        ending = after[:, :, vae.frame_pre_padding :]
        yield own
    yield ending


def _clip(vae: Any, z: Tensor, axis: Axis) -> Tensor | None:
    """Decode the tiles of a clip on all ranks, and blend them on rank 0; return None on other ranks."""
    ratio = vae.spatial_compression_ratio
    rows, heights, row_overlaps = _tiles(vae, z.shape[-2] * ratio, "height")
    columns, widths, column_overlaps = _tiles(vae, z.shape[-1] * ratio, "width")
    tiles = list(product(zip(rows, heights, strict=True), zip(columns, widths, strict=True)))
    assigned = [tiles[rank :: axis.size] for rank in range(axis.size)]

    def decoded(tile: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
        (top, height), (left, width) = tile
        part = z[..., top // ratio : (top + height) // ratio, left // ratio : (left + width) // ratio]
        pixels: Tensor = vae.decoder(vae.post_quant_conv(part))
        return pixels

    mine = [decoded(tile) for tile in assigned[axis.rank]]
    if axis.rank > 0:
        collect_parts(mine, [], axis)
        return None
    shapes = [[(*mine[0].shape[:3], height, width) for (_, height), (_, width) in of_rank] for of_rank in assigned]
    parts = collect_parts(mine, shapes, axis)
    placed = {
        tile: part
        for of_rank, own in zip(assigned, parts, strict=True)
        for tile, part in zip(of_rank, own, strict=True)
    }
    grid = [[placed[tile] for tile in tiles[at : at + len(columns)]] for at in range(0, len(tiles), len(columns))]
    picture: Tensor = vae._stitch_tiles(grid, row_overlaps, column_overlaps)
    return picture


def _tiles(vae: Any, length: int, side: str) -> tuple[list[int], list[int], list[int]]:
    """Return first pixels, lengths and overlaps of the tiles along a side of the picture, as the VAE cuts it."""
    if not vae.use_tiling:
        return [0], [length], []
    size, overlap = (getattr(vae, f"tile_sample_min_{kind}{side}") for kind in ("", "overlap_"))
    starts, lengths, overlaps = vae._split_tiles(length, size, overlap)
    return starts, lengths, overlaps


def _to_frames(picture: Tensor) -> Tensor:
    """Convert [1, 3, t, h, w] of the VAE to float32 [t, h, w, 3] in [0, 1]."""
    mean, std = (torch.tensor(values, device=picture.device).view(1, -1, 1, 1, 1) for values in (_MEAN, _STD))
    return (picture.float() * std + mean).clamp(0, 1)[0].permute(1, 2, 3, 0)

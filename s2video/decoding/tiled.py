"""diffusers' tiled decoding on several ranks: each rank decodes some overlapping tiles, and rank 0 blends them.

Sizes, overlaps and blending order are those of the VAE's `tiled_decode`, so the result is the same; tiles can cause
seams. Frames are yielded early: with Wan after each latent frame (each tile has its own cache), with HunyuanVideo 1.0
after each tile in time, with 1.5 all at once, since its tiles are as long as the video. HunyuanVideo's VAEs, whose
attention spans frames, can only be split in this way; for Wan's, `sharded` has no seams.

Dimension letters as in `whole`; h, w of one tile.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from torch import Tensor, nn

from ..parallel.collectives import collect_parts
from ..parallel.mesh import Axis
from .whole import VideoVae, decode_latent_frame, denormalize, new_cache, on_cpu, to_frames, unpatched

Tile = tuple[int, int]  # first latent row and first latent column
DecodeTile = Callable[[Tile, Tensor], Tensor]  # [1, C, T, h, w] -> [1, C', t, h·scale, w·scale]


@torch.no_grad()
def decode_tiled(vae: VideoVae, latents: Tensor, axis: Axis) -> Generator[Tensor | None, None, None]:
    """Yield float32 chunks [t, H·s, W·s, 3] in [0, 1] on rank 0's CPU, and the same number of None on other ranks.

    Args:
        latents: [1, C, T, H, W], the same on all ranks, as the transformer uses them. A picture no larger than a tile
            is decoded whole by rank 0.
        axis: the ranks that decode; if there are more ranks than tiles, some are idle.
    """
    z = denormalize(vae, latents)
    cut = _Cut.of(vae, z.shape[-2], z.shape[-1])
    if isinstance(vae, AutoencoderKLWan):
        pictures = _wan_pictures(vae, z, cut, axis)
    elif isinstance(vae, AutoencoderKLHunyuanVideo15):
        _use_fast_masks(vae.decoder)
        pictures = iter([_picture(vae, z, cut, axis, lambda tile, part: vae.decoder(part))])
    else:
        pictures = _pictures(vae, z, cut, axis)
    frames = (None if picture is None else to_frames(picture) for picture in pictures)
    yield from on_cpu(frames, vae.device)


@dataclass(frozen=True)
class _Cut:
    """The division of a picture into tiles.

    Attributes:
        height, width: size of a tile, in latents; the last tiles may be smaller.
        rows, columns: first row and column of each tile, in latents.
        scale: decoded pixels per latent row or column, before patches are unfolded.
        kept: number of decoded rows and columns of a tile that are used in the picture.
        blended: number of those, at the start, that are blended with the previous tile.
    """

    height: int
    width: int
    rows: range
    columns: range
    scale: int
    kept: tuple[int, int]
    blended: tuple[int, int]

    @classmethod
    def of(cls, vae: VideoVae, rows: int, columns: int) -> "_Cut":
        ratio, patch = vae.spatial_compression_ratio, getattr(vae.config, "patch_size", None) or 1
        scale = ratio // patch
        sizes = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        height, width = (size // ratio for size in sizes)
        if rows <= height and columns <= width:
            return cls(rows, columns, range(1), range(1), scale, (rows * scale, columns * scale), (0, 0))
        if isinstance(vae, AutoencoderKLHunyuanVideo15):
            share = vae.tile_overlap_factor
            steps = (int(height * (1 - share)), int(width * (1 - share)))
            blended = (int(sizes[0] * share), int(sizes[1] * share))
        else:
            strides = (vae.tile_sample_stride_height, vae.tile_sample_stride_width)
            steps = (strides[0] // ratio, strides[1] // ratio)
            blended = (sizes[0] // patch - strides[0] // patch, sizes[1] // patch - strides[1] // patch)
        return cls(
            height,
            width,
            range(0, rows, steps[0]),
            range(0, columns, steps[1]),
            scale,
            (sizes[0] // patch - blended[0], sizes[1] // patch - blended[1]),
            blended,
        )

    def take(self, z: Tensor, tile: Tile) -> Tensor:
        return z[..., tile[0] : tile[0] + self.height, tile[1] : tile[1] + self.width]


def _wan_pictures(vae: AutoencoderKLWan, z: Tensor, cut: _Cut, axis: Axis) -> Iterator[Tensor | None]:
    """Yield [1, 3, t, H·s, W·s] on rank 0 for each latent frame; None on other ranks."""
    caches = {tile: new_cache(vae) for tile in product(cut.rows, cut.columns)}

    def decode(tile: Tile, part: Tensor) -> Tensor:
        return decode_latent_frame(vae, part, caches[tile])

    for frame in z.split(1, dim=2):
        picture = _picture(vae, frame, cut, axis, decode)
        yield None if picture is None else unpatched(vae, picture)


def _pictures(vae: AutoencoderKLHunyuanVideo, z: Tensor, cut: _Cut, axis: Axis) -> Iterator[Tensor | None]:
    """Yield [1, 3, t, H·s, W·s] on rank 0 for each tile in time, blended with the previous one; None on other ranks."""
    ratio, num_frames = vae.temporal_compression_ratio, z.shape[2]
    length, stride = vae.tile_sample_min_num_frames // ratio, vae.tile_sample_stride_num_frames // ratio
    if not vae.use_framewise_decoding or num_frames <= length:
        length = stride = num_frames

    def decode(tile: Tile, part: Tensor) -> Tensor:
        decoded: Tensor = vae.decoder(vae.post_quant_conv(part))
        return decoded

    before: Tensor | None = None
    # Later tiles drop what their first latent frame decodes to, so a tile of one latent frame would add nothing.
    for start in range(0, max(1, num_frames - 1), stride):
        picture = _picture(vae, z[:, :, start : start + length + 1], cut, axis, decode)
        if picture is None:
            yield None
            continue
        kept = stride * ratio + 1
        if before is not None:
            picture, kept = picture[:, :, 1:], kept - 1
            blend(before, picture, (length - stride) * ratio, dim=-3)
        before = picture
        yield picture[:, :, :kept]


def _picture(vae: VideoVae, z: Tensor, cut: _Cut, axis: Axis, decode: DecodeTile) -> Tensor | None:
    """Decode tiles on all ranks and blend them on rank 0: [1, C, T, H, W] -> [1, C', t, H·scale, W·scale].

    Return None on other ranks.
    """
    tiles = list(product(cut.rows, cut.columns))
    assigned = [tiles[rank :: axis.size] for rank in range(axis.size)]
    decoded = [decode(tile, cut.take(z, tile)) for tile in assigned[axis.rank]]
    if axis.rank > 0:
        collect_parts(decoded, [], axis)
        return None
    shapes = [
        [(*decoded[0].shape[:3], *(size * cut.scale for size in cut.take(z, tile).shape[-2:])) for tile in of_rank]
        for of_rank in assigned
    ]
    collected = collect_parts(decoded, shapes, axis)
    placed = {
        tile: part
        for of_rank, parts in zip(assigned, collected, strict=True)
        for tile, part in zip(of_rank, parts, strict=True)
    }
    for row, column in tiles:  # in place, so that a tile is blended with a neighbour that is blended already
        if row > 0:
            blend(placed[row - cut.rows.step, column], placed[row, column], cut.blended[0], dim=-2)
        if column > 0:
            blend(placed[row, column - cut.columns.step], placed[row, column], cut.blended[1], dim=-1)
    strips = [
        torch.cat([placed[row, column][..., : cut.kept[0], : cut.kept[1]] for column in cut.columns], dim=-1)
        for row in cut.rows
    ]
    return torch.cat(strips, dim=-2)[..., : z.shape[-2] * cut.scale, : z.shape[-1] * cut.scale]


def blend(before: Tensor, tile: Tensor, extent: int, *, dim: int) -> None:
    """Blend the start of `tile` with the end of the previous one along `dim`, in place: [1, C, t, h, w] each.

    Equals diffusers' `blend_v`, `blend_h` and `blend_t` to the bit, which start four kernels for each row.
    """
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return
    # torch multiplies half precision by a number in float32 and rounds the product; so do these weights
    exact = torch.promote_types(tile.dtype, torch.float32)
    share = torch.arange(extent, dtype=torch.float64, device=tile.device) / extent
    share = share.view(-1, *(1,) * (-dim - 1))
    start, end = tile.narrow(dim, 0, extent), before.narrow(dim, before.shape[dim] - extent, extent)
    leaving = (end.to(exact) * (1 - share).to(exact)).to(tile.dtype)
    coming = (start.to(exact) * share.to(exact)).to(tile.dtype)
    start.copy_(leaving + coming)


def causal_mask(n_frame: int, n_hw: int, dtype: torch.dtype, device: torch.device, batch_size: int | None) -> Tensor:
    """Return HunyuanVideo 1.5's attention mask [B, T·h·w, T·h·w]: 0 up to the end of the own frame, then −∞.

    Equals `prepare_causal_attention_mask` of diffusers, which starts a kernel for each row, and has its arguments.
    """
    frames = torch.arange(n_frame, device=device).repeat_interleave(n_hw)
    mask = torch.zeros(len(frames), len(frames), dtype=dtype, device=device)
    mask.masked_fill_(frames[:, None] < frames[None, :], -torch.inf)
    return mask if batch_size is None else mask.unsqueeze(0).expand(batch_size, -1, -1)


def _use_fast_masks(decoder: nn.Module) -> None:
    """Let the attention of HunyuanVideo 1.5's decoder use `causal_mask` from now on."""
    for module in decoder.modules():
        if isinstance(module, HunyuanVideo15AttnBlock):
            module.prepare_causal_attention_mask = causal_mask

"""Token tensors that every transformer needs: a shard of the video tokens, and padded text.

Independent of the model. Dimension letters as in `base`; p_t, p_h, p_w patch sizes.
"""

import threading
import weakref
from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..geometry import LatentShape, Shard
from ..parallel.collectives import gather_tokens
from .base import BlockContext


def embed_shard(
    latents: Tensor, shard: Shard, patch_size: tuple[int, int, int], patchify: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the tokens [B, L_local, D] of one shard of latents [B, C, T, H, W]. Embeds only the frames that hold them.

    Args:
        patchify: converts latents of any number of frames to all their tokens [B, L, D].
    """
    grid = LatentShape(*latents.shape[2:]).tokens(patch_size)
    first, last = grid.frame_span(shard)
    if not shard.length:  # more ranks than tokens; embed a frame for the width, dtype and device
        return patchify(latents[:, :, : patch_size[0]])[:, :0]
    tokens = patchify(latents[:, :, first * patch_size[0] : last * patch_size[0]])
    skipped = first * grid.height * grid.width
    return tokens[:, shard.start - skipped : shard.stop - skipped].contiguous()


class RotaryTables(threading.local):
    """A shard's rotary tables, which the branches of a step share. Each thread, which may have a stream, has its own.

    They are kept as long as a context has them, so none are left when latents are decoded.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._kept: tuple[weakref.ref[Tensor], ...] = ()

    def of(
        self, latents: Tensor, shard: Shard, make: Callable[[Tensor], tuple[Tensor, Tensor]], dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the shard's tokens, which are along `dim` of what `make(latents)` returns."""
        key = tuple(latents.shape[2:]), latents.device, shard
        cos, sin = (ref() for ref in self._kept) if self._key == key else (None, None)
        if cos is None or sin is None:
            cos, sin = (_part(table, shard, dim) for table in make(latents))
            self._key, self._kept = key, (weakref.ref(cos), weakref.ref(sin))
        return cos, sin


def _part(table: Tensor, shard: Shard, dim: int) -> Tensor:
    """Return a shard's part of a table, without the rest of it in memory."""
    part = table.narrow(dim, shard.start, shard.length)
    return part if shard.length == table.shape[dim] else part.clone()


def gather_latents(patches: Tensor, context: BlockContext, patch_size: tuple[int, int, int], order: str) -> Tensor:
    """Gather projected patches [B, L_local, p_t·p_h·p_w·C] to whole latents [B, C, T, H, W] on every rank.

    Args:
        order: layout of the last dimension, slowest first: "pt ph pw c" or "c pt ph pw".
    """
    patches = gather_tokens(patches, context.attention.tokens, context.attention.axes.whole)
    grid = LatentShape(*context.latent_shape).tokens(patch_size)
    sizes = dict(zip(("t", "h", "w", "pt", "ph", "pw"), (*grid, *patch_size), strict=True))
    return rearrange(patches, f"b (t h w) ({order}) -> b c (t pt) (h ph) (w pw)", **sizes)


def pad_text(text: Tensor, length: int) -> Tensor:
    """Pad text [B, M, D] with zeros at the end to [B, length, D]."""
    return F.pad(text, (0, 0, 0, length - text.shape[1]))

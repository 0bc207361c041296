"""Token tensors that every transformer needs: a shard of the video tokens, and padded text.

Independent of the model. Dimension letters as in `base`; p_t, p_h, p_w patch sizes.
"""

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

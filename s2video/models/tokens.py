"""Token tensors that every transformer needs: this rank's video tokens, and text padded to a length.

Knows no particular model. Dimension letters as in `base`; p_t, p_h, p_w patch sizes.
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
    """Whole latents [B, C, T, H, W] -> the tokens of one shard, [B, L_local, D].

    Only the frames that hold them are embedded.

    Args:
        patchify: latents of any number of frames -> all their tokens, [B, L, D].
    """
    grid = LatentShape(*latents.shape[2:]).tokens(patch_size)
    first, last = grid.frame_span(shard)
    if not shard.length:  # more ranks than tokens: one frame lends its width, dtype and device
        return patchify(latents[:, :, : patch_size[0]])[:, :0]
    tokens = patchify(latents[:, :, first * patch_size[0] : last * patch_size[0]])
    skipped = first * grid.height * grid.width
    return tokens[:, shard.start - skipped : shard.stop - skipped].contiguous()


def gather_latents(patches: Tensor, context: BlockContext, patch_size: tuple[int, int, int], order: str) -> Tensor:
    """This rank's projected patches [B, L_local, p_t·p_h·p_w·C] -> whole latents [B, C, T, H, W] on every rank.

    Args:
        order: what the last dimension holds, slowest first: "pt ph pw c" or "c pt ph pw".
    """
    patches = gather_tokens(patches, context.attention.tokens, context.attention.axes.whole)
    grid = LatentShape(*context.latent_shape).tokens(patch_size)
    sizes = dict(zip(("t", "h", "w", "pt", "ph", "pw"), (*grid, *patch_size), strict=True))
    return rearrange(patches, f"b (t h w) ({order}) -> b c (t pt) (h ph) (w pw)", **sizes)


def pad_text(text: Tensor, length: int) -> Tensor:
    """[B, M, D] -> [B, length, D], zero behind the text."""
    return F.pad(text, (0, 0, 0, length - text.shape[1]))

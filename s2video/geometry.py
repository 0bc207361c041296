"""Sizes: pixels to latents to tokens, and how tokens or heads are shared out among ranks.

Pure arithmetic on integers; nothing here knows a tensor or a process group.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class LatentShape:
    """Latent frames, rows and columns, before patching."""

    frames: int
    height: int
    width: int

    @classmethod
    def from_pixels(
        cls, *, num_frames: int, height: int, width: int, temporal_factor: int, spatial_factor: int
    ) -> "LatentShape":
        """A causal video VAE turns its first frame into one latent frame and each `temporal_factor` more into one."""
        return cls((num_frames - 1) // temporal_factor + 1, height // spatial_factor, width // spatial_factor)

    def tokens(self, patch_size: tuple[int, int, int]) -> "TokenGrid":
        return TokenGrid(self.frames // patch_size[0], self.height // patch_size[1], self.width // patch_size[2])


class TokenGrid(NamedTuple):
    """Patches along frames, rows and columns; tokens are numbered in that order, columns fastest."""

    frames: int
    height: int
    width: int

    @property
    def num_tokens(self) -> int:
        return math.prod(self)

    def frame_span(self, shard: "Shard") -> tuple[int, int]:
        """First patch frame that holds a token of the shard, and the one after the last; (0, 0) for no tokens."""
        if not shard.length:
            return 0, 0
        per_frame = self.height * self.width
        return shard.start // per_frame, -(-(shard.start + shard.length) // per_frame)


class Shard(NamedTuple):
    """A contiguous run: `length` items from `start` on."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


def split_evenly(total: int, parts: int) -> tuple[Shard, ...]:
    """`total` items in `parts` contiguous shards whose lengths differ by at most one, the longer ones first.

    Shards may be empty where there are more parts than items. No padding: uneven lengths are carried as they are.

    >>> split_evenly(7, 3)
    (Shard(start=0, length=3), Shard(start=3, length=2), Shard(start=5, length=2))
    """
    base, extra = divmod(total, parts)
    lengths = [base + (i < extra) for i in range(parts)]
    return tuple(Shard(sum(lengths[:i]), length) for i, length in enumerate(lengths))

"""Sizes in pixels, latents and tokens, and the split of tokens or heads among ranks.

Pure integer arithmetic; knows neither tensors nor process groups.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class LatentShape:
    """The number of latent frames, rows and columns, before patching."""

    frames: int
    height: int
    width: int

    @classmethod
    def from_pixels(
        cls, *, num_frames: int, height: int, width: int, temporal_factor: int, spatial_factor: int
    ) -> "LatentShape":
        """Return the latent shape of a video.

        A causal video VAE encodes the first frame as one latent frame, and each `temporal_factor` more as one.
        """
        return cls((num_frames - 1) // temporal_factor + 1, height // spatial_factor, width // spatial_factor)

    def tokens(self, patch_size: tuple[int, int, int]) -> "TokenGrid":
        return TokenGrid(self.frames // patch_size[0], self.height // patch_size[1], self.width // patch_size[2])


class TokenGrid(NamedTuple):
    """The number of patches along frames, rows and columns. Tokens are numbered in that order, columns fastest."""

    frames: int
    height: int
    width: int

    @property
    def num_tokens(self) -> int:
        return math.prod(self)

    def frame_span(self, shard: "Shard") -> tuple[int, int]:
        """Return [start, stop) of the patch frames that hold tokens of the shard; (0, 0) if it is empty."""
        if not shard.length:
            return 0, 0
        per_frame = self.height * self.width
        return shard.start // per_frame, -(-(shard.start + shard.length) // per_frame)


class Shard(NamedTuple):
    """A contiguous range of `length` items that begins at `start`."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


def split_evenly(total: int, parts: int) -> tuple[Shard, ...]:
    """Split `total` items into `parts` contiguous shards whose lengths differ by at most one, longer ones first.

    If there are more parts than items, some shards are empty. Nothing is padded.

    >>> split_evenly(7, 3)
    (Shard(start=0, length=3), Shard(start=3, length=2), Shard(start=5, length=2))
    """
    base, extra = divmod(total, parts)
    lengths = [base + (i < extra) for i in range(parts)]
    return tuple(Shard(sum(lengths[:i]), length) for i, length in enumerate(lengths))

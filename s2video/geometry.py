"""Sizes in pixels, latents and tokens, and the split of tokens or heads among ranks.

Pure integer arithmetic; knows neither tensors nor process groups.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
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


class FrameGrid(NamedTuple):
    """The numbers of frames that a model can make, and the latent frames of each.

    Attributes:
        first: the least number of frames that the VAE encodes, as `first_latents` latent frames.
        step: each so many frames more are `step_latents` latent frames more.
        least, most: bounds of the model itself; None means unlimited.
    """

    first: int
    step: int
    first_latents: int = 1
    step_latents: int = 1
    least: int = 1
    most: int | None = None

    @classmethod
    def causal(cls, temporal_factor: int, patch: int = 1) -> "FrameGrid":
        """Return the grid of a causal VAE: one frame as the first latent frame, then `temporal_factor` for each.

        Args:
            patch: latent frames that make one token.
        """
        return cls(1 + temporal_factor * (patch - 1), temporal_factor * patch, patch, patch)

    def latents(self, num_frames: int) -> int:
        """Return the latent frames of `num_frames` frames."""
        return self.first_latents + (num_frames - self.first) // self.step * self.step_latents

    def frames(self, num_latents: int) -> int:
        """Return the frames that `num_latents` latent frames are decoded to."""
        return self.first + (num_latents - self.first_latents) // self.step_latents * self.step

    def holds(self, num_frames: int) -> bool:
        """Return whether the VAE encodes this number of frames."""
        return num_frames >= self.first and (num_frames - self.first) % self.step == 0

    def nearest(self, num_frames: float | Fraction) -> int:
        """Return the possible number of frames that is next to `num_frames`."""
        found = self.first + max(0, round((num_frames - self.first) / self.step)) * self.step
        found = max(found, self.at_least(0))
        return (
            found if self.most is None else min(found, self.first + (self.most - self.first) // self.step * self.step)
        )

    def at_least(self, num_frames: int) -> int:
        """Return the smallest possible number of frames that is not below `num_frames`."""
        wanted = max(num_frames, self.least)
        return self.first + max(0, -(-(wanted - self.first) // self.step)) * self.step


@dataclass(frozen=True)
class SoundShape:
    """The sound that a model makes together with the picture: rows of numbers, in time, one channel after the other.

    Attributes:
        frames: the numbers of frames of its videos.
        fps: frames per second that its videos have.
        rate: latents per second of each channel.
        channels: channels of the sound, such as 2 for stereo.
        width: numbers in a latent.
    """

    frames: FrameGrid
    fps: int
    rate: int
    channels: int
    width: int

    def num_latents(self, latent_frames: int) -> int:
        """Return the latents of one channel for a video of so many latent frames."""
        return round(self.frames.frames(latent_frames) / self.fps * self.rate)

    def num_rows(self, latent_frames: int) -> int:
        """Return the latents of all channels."""
        return self.channels * self.num_latents(latent_frames)

    def carriers(self, latent_frames: int, cells: int) -> int:
        """Return how many latent frames of `cells` numbers hold the sound of a video, the last one padded."""
        return -(-self.num_rows(latent_frames) * self.width // cells)

    def latent_frames(self, total: int, cells: int) -> int:
        """Return the latent frames of the picture if picture and sound together have `total` of `cells` numbers.

        Raises:
            ValueError: no video has so many.
        """
        for frames in range(self.frames.first_latents, total, self.frames.step_latents):
            if frames + self.carriers(frames, cells) == total:
                return frames
        raise ValueError(f"expected latent frames of a picture and its sound, got {total} of {cells} numbers")


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

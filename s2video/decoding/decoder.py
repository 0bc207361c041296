"""Decoding of latents to frames on all ranks: the choice of method and ranks, and the steps that they take together.

Knows neither the sampler nor the use of the frames.
"""

from collections.abc import Callable, Generator
from functools import cached_property
from typing import Any, Literal

from diffusers import AutoencoderKLWan
from torch import Tensor

from ..errors import S2VideoError
from ..geometry import LatentShape
from ..parallel.lead import in_step
from ..parallel.mesh import Axis, Mesh, first_ranks
from .kinds import MINIMAX_H3_VAE, VAES
from .minimax_h3 import decode_clips
from .sharded import decode_sharded
from .tiled import decode_tiled
from .whole import decode_frames

DecodeMode = Literal["auto", "sharded", "tiled", "serial"]


class FrameDecoder:
    """A decoder of latents to frames on rank 0, with the help of other ranks. All ranks construct and call it together.

    Args:
        mode: "sharded" for strips of the picture (Wan's VAE only); "tiled" for overlapping tiles; "serial" for rank 0
            alone (others than Wan's still decode tiles); "auto" for sharded with Wan's VAE, tiled with others.
        latent_shape: shape of the latents of all videos. Strips use at most as many ranks as its longer side is long.
        vae_class: name of the VAE's class in diffusers.
        load_vae: loads the VAE; called once, on the ranks that decode.
        timeout_seconds: how long a decoding rank waits for another one.

    Attributes:
        vae: the VAE on the ranks that decode, which always include rank 0; None on the others.
    """

    def __init__(
        self,
        mode: DecodeMode,
        mesh: Mesh,
        latent_shape: LatentShape,
        *,
        vae_class: str,
        load_vae: Callable[[], Any],
        timeout_seconds: float,
    ) -> None:
        world = mesh.world
        if mode == "auto":
            mode = "sharded" if VAES[vae_class].is_causal else "tiled"
        if mode == "sharded" and world.size == 1:
            mode = "serial"  # a single strip is the whole picture
        ranks = {"serial": 1, "tiled": world.size, "sharded": max(latent_shape.height, latent_shape.width)}
        self._mode = mode
        self._vae_class = vae_class
        self._mesh = mesh
        self._num_ranks = min(world.size, ranks[mode])
        self._timeout_seconds = timeout_seconds
        self._is_decoding = False
        self.vae = load_vae() if world.rank < self._num_ranks else None

    def __call__(self, latents: Tensor) -> Generator[Tensor, None, None]:
        """Decode the latents [1, C, T, H, W] of one video to float32 chunks [t, H·s, W·s, 3] in [0, 1] on rank 0's CPU.

        The other ranks must iterate too, and receive nothing.

        Raises:
            S2VideoError: on the other ranks, if rank 0's reader closed its iterator early; on all ranks, if they decode
                together and have not finished or closed another video.
        """
        return in_step(self._chunks(latents), self._mesh.world, self._mesh.device)

    @property
    def needs_others(self) -> bool:
        """Whether other ranks decode with rank 0."""
        return self._num_ranks > 1

    def alone(self, latents: Tensor) -> Generator[Tensor, None, None]:
        """Decode on rank 0 without any communication. Not allowed if `needs_others`."""
        assert not self.needs_others
        yield from self._chunks(latents)

    @cached_property
    def _axis(self) -> Axis | None:
        """The ranks that decode. Made at the first call, after the ranks agreed on the job and so on the size."""
        return first_ranks("decode", self._num_ranks, self._mesh.world, self._timeout_seconds)

    def _chunks(self, latents: Tensor) -> Generator[Any, None, None]:
        axis = self._axis
        if axis is None:
            return
        if axis.size == 1:  # one rank has all state of a call in the call
            yield from self._decoded(latents, axis)
            return
        if self._is_decoding:
            raise S2VideoError(
                "decoding on several ranks: expected one video at a time, got a second one before the first was "
                "complete; exhaust or close the first"
            )
        self._is_decoding = True
        try:
            yield from self._decoded(latents, axis)
        finally:
            self._is_decoding = False

    def _decoded(self, latents: Tensor, axis: Axis) -> Generator[Any, None, None]:
        if self._vae_class == MINIMAX_H3_VAE:
            yield from decode_clips(self.vae, latents, axis)
        elif self._mode == "sharded":
            yield from decode_sharded(self.vae, latents, axis)
        elif self._mode == "tiled" or not isinstance(self.vae, AutoencoderKLWan):
            yield from decode_tiled(self.vae, latents, axis)
        else:
            yield from decode_frames(self.vae, latents)

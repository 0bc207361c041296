"""How the ranks of a run turn latents into frames: which of them decode, in which way, and that all stay in step.

Knows neither the sampler nor what becomes of the frames.
"""

from collections.abc import Callable, Generator
from functools import cached_property
from typing import Any, Literal

from diffusers import AutoencoderKLWan
from torch import Tensor

from ..geometry import LatentShape
from ..parallel.lead import in_step
from ..parallel.mesh import Axis, Mesh, first_ranks
from .kinds import VAES
from .sharded import decode_sharded
from .tiled import decode_tiled
from .whole import decode_frames

DecodeMode = Literal["auto", "sharded", "tiled", "serial"]


class FrameDecoder:
    """Latents -> frames on rank 0, with the help of other ranks. All ranks construct and call it together.

    Args:
        mode: "sharded": strips of the picture (Wan's VAE only); "tiled": overlapping tiles; "serial": rank 0 alone,
            with HunyuanVideo's VAE by tiles too; "auto": sharded with Wan's VAE, tiled with HunyuanVideo's.
        latent_shape: of the videos to come. No more ranks decode by strips than its longer side has rows or columns.
        vae_class: diffusers' name of the VAE's class.
        load_vae: called once, on the ranks that decode.
        timeout_seconds: how long a rank that decodes waits for another one.

    Attributes:
        vae: on the ranks that decode, rank 0 being always one of them; None on the others.
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
            mode = "serial"  # the one strip is the picture
        ranks = {"serial": 1, "tiled": world.size, "sharded": max(latent_shape.height, latent_shape.width)}
        self._mode = mode
        self._mesh = mesh
        self._num_ranks = min(world.size, ranks[mode])
        self._timeout_seconds = timeout_seconds
        self.vae = load_vae() if world.rank < self._num_ranks else None

    def __call__(self, latents: Tensor) -> Generator[Tensor, None, None]:
        """Frames of one video [1, C, T, H, W]: chunks of float32 [t, H·s, W·s, 3] in [0, 1], on the CPU of rank 0.

        The other ranks iterate too, and receive nothing.

        Raises:
            S2VideoError: on the other ranks, where rank 0's reader closed its iterator early.
        """
        return in_step(self._chunks(latents), self._mesh.world, self._mesh.device)

    @property
    def needs_others(self) -> bool:
        """Whether other ranks decode with rank 0."""
        return self._num_ranks > 1

    def alone(self, latents: Tensor) -> Generator[Tensor, None, None]:
        """The same on rank 0, of which the others learn nothing; not where `needs_others`."""
        assert not self.needs_others
        yield from self._chunks(latents)

    @cached_property
    def _axis(self) -> Axis | None:
        """Made at the first call, after the ranks have agreed on the job and so on its size."""
        return first_ranks("decode", self._num_ranks, self._mesh.world, self._timeout_seconds)

    def _chunks(self, latents: Tensor) -> Generator[Any, None, None]:
        axis = self._axis
        if axis is None:
            return
        if self._mode == "sharded":
            yield from decode_sharded(self.vae, latents, axis)
        elif self._mode == "tiled" or not isinstance(self.vae, AutoencoderKLWan):
            yield from decode_tiled(self.vae, latents, axis)
        else:
            yield from decode_frames(self.vae, latents)

"""Frames and sound of latents: the VAEs of a checkpoint, loaded once, for pictures of any size."""

from collections.abc import Generator
from contextlib import closing, nullcontext
from functools import cache
from threading import RLock

import torch
from torch import Tensor

from ..config.run import RunConfig
from ..decoding.decoder import FrameDecoder
from ..decoding.sound import decode_sound, split_sound
from ..geometry import LatentShape
from ..media.sound import Sound
from ..models.checkpoint import Checkpoint
from ..models.loading import load_sound_vae, load_vae
from ..parallel.mesh import Mesh


class Decoders:
    """A decoder for each number of ranks that can share a picture; they have one VAE.

    All ranks construct it and call its methods together. In a single process, threads can share it: chunks wait for
    each other, and their state belongs to each call.

    Args:
        config: its sections `model` and `parallel` decide.

    Attributes:
        lock: held while a VAE works. It can be taken again by the thread that has it.
    """

    def __init__(self, checkpoint: Checkpoint, config: RunConfig, mesh: Mesh) -> None:
        self._checkpoint = checkpoint
        self._parallel = config.parallel
        self._mesh = mesh
        self._load_vae = cache(lambda: load_vae(checkpoint, getattr(torch, config.model.vae_dtype), mesh.device))
        self._load_sound_vae = cache(lambda: load_sound_vae(checkpoint, mesh.device))
        self._made: dict[int, FrameDecoder] = {}
        self.lock = RLock()

    def of(self, shape: LatentShape) -> FrameDecoder:
        """Return the decoder for pictures of this size."""
        num_ranks = min(self._mesh.world.size, max(shape.height, shape.width))
        if num_ranks not in self._made:
            self._made[num_ranks] = FrameDecoder(
                self._parallel.decode,
                self._mesh,
                shape,
                vae_class=self._checkpoint.info.vae_class,
                load_vae=self._load_vae,
                timeout_seconds=self._parallel.timeout_seconds,
            )
        return self._made[num_ranks]

    def frames(self, latents: Tensor, shape: LatentShape, *, alone: bool = False) -> Generator[Tensor, None, None]:
        """Return an iterator over one video's frames; see `Engine.decode`.

        Args:
            latents: of the video, [1, C, T, H, W], with those of its sound if the model makes some.
            shape: of the picture's latents.
        """
        decoder = self.of(shape)
        if (sound := self._checkpoint.info.sound) is not None:
            latents, _ = split_sound(latents, sound)
        return self._chunks(decoder, latents, alone)

    def _chunks(self, decoder: FrameDecoder, latents: Tensor, alone: bool) -> Generator[Tensor, None, None]:
        resting = nullcontext() if alone else self._mesh.watch.resting_after()
        with resting, closing((decoder.alone if alone else decoder)(latents)) as chunks:
            while True:
                with self.lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk

    def sound(self, latents: Tensor) -> Sound | None:
        """Return the sound of one video's latents, or None if the model makes none; main rank only."""
        shape = self._checkpoint.info.sound
        if shape is None:
            return None
        with self.lock:
            return decode_sound(self._load_sound_vae(), split_sound(latents, shape)[1], shape.channels)

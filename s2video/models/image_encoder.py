"""Encoding of a video's first and last image, or of its control, to image conditioning.

The encoders and the VAE run on the mesh's main rank only; their outputs are broadcast. Does not know how the
conditioning is used.
"""

from typing import Any

import torch
from torch import Tensor

from ..parallel.collectives import broadcast_tensors
from ..parallel.mesh import Mesh
from ..parallel.offload import keep_on_cpu
from .base import ImageConditioning
from .control import Control, Pictures
from .family import Family


class ImageEncoder:
    """A family's image encoder and VAE, with a cache of the last result.

    Args:
        pipeline: diffusers' pipeline of the conditioners and the VAE, on the main rank; None on the others.
        offload: free the image encoder's memory on the device after each use; it stays in CPU memory.
    """

    def __init__(self, family: Family, pipeline: Any, mesh: Mesh, *, offload: bool) -> None:
        self._family = family
        self._pipeline = pipeline
        self._mesh = mesh
        encoder = getattr(pipeline, "image_encoder", None)
        self._encoder = encoder
        self._offloaded = keep_on_cpu(encoder, mesh.device, pins_from=2) if encoder is not None and offload else None
        self._last: tuple[Any, tuple[Tensor, ...]] | None = None

    def __call__(self, images: Pictures | None, latents: Tensor) -> ImageConditioning:
        """Return the image conditioning for latents [B, C, T, H, W]. All ranks call this with the same images."""
        if images is None:
            return self._family.image_conditioning(latents)
        key = (images.digests(), latents.shape[1:])
        if self._last is None or self._last[0] != key:
            encoded = None if self._pipeline is None else self._encode(images, latents[:1])
            self._last = key, tuple(broadcast_tensors(encoded, self._mesh.world, self._mesh.device))
        return self._family.image_conditioning(latents, *self._last[1])

    @torch.no_grad()
    def _encode(self, images: Pictures, latents: Tensor) -> tuple[Tensor, ...]:
        if self._offloaded is not None:
            self._offloaded.bring()
        elif self._encoder is not None:
            self._encoder.to(self._mesh.device)
        if isinstance(images, Control):
            encoded = self._family.encode_control(self._pipeline, images, latents, device=self._mesh.device)
        else:
            encoded = self._family.encode_images(self._pipeline, images, latents, device=self._mesh.device)
        if self._offloaded is not None:
            self._offloaded.release()
            if self._mesh.device.type == "cuda":
                torch.cuda.empty_cache()
        return encoded

"""Prompts -> text embeddings, on one rank, for all ranks.

The encoder runs on the mesh's main rank only; its output is broadcast, and the last ones used are kept by prompt.
Between uses its memory can be given back. Knows nothing of what the embeddings are for.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor

from ..parallel.collectives import broadcast_tensor
from ..parallel.mesh import Mesh

_CACHED = 16  # embeddings kept: 4 MiB each for Wan in bfloat16, on every rank's device


class TextEncoder:
    """Wan's UMT5 encoder with a cache.

    Args:
        tokenizer, encoder: on the main rank; None on the others, which receive what it encodes.
        max_sequence_length: tokens of every embedding, zero after the prompt's end. Wan attends to the padding.
        offload: move the encoder back to the CPU after each use.
    """

    def __init__(
        self, tokenizer: Any, encoder: Any, mesh: Mesh, *, max_sequence_length: int, dtype: torch.dtype, offload: bool
    ) -> None:
        self._mesh = mesh
        self._max_sequence_length = max_sequence_length
        self._dtype = dtype
        self._offload = offload
        self._encoder = encoder
        self._cache: dict[str, Tensor] = {}
        if encoder is not None:
            # the pipeline cleans, tokenizes, encodes and pads prompts; it needs no other component for that
            self._pipeline = WanPipeline(tokenizer, encoder, vae=None, scheduler=None)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[B, max_sequence_length, D_text] on the mesh's device, in the transformer's dtype. All ranks call this."""
        missing = list(dict.fromkeys(p for p in prompts if p not in self._cache))
        if missing:
            embeddings = self._encode(missing) if self._encoder is not None else None
            received = broadcast_tensor(embeddings, self._mesh.world, self._mesh.device)
            # a part of its own for each, or one that stays would keep all of them
            self._cache.update(zip(missing, (part.clone() for part in received.split(1)), strict=True))
        embeddings = torch.cat([self._cache[prompt] for prompt in prompts])
        for prompt in prompts:  # the last used stand last; every rank drops the same
            self._cache[prompt] = self._cache.pop(prompt)
        for prompt in list(self._cache)[:-_CACHED]:
            del self._cache[prompt]
        return embeddings

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Tensor:
        self._encoder.to(self._mesh.device)
        embeddings, _ = self._pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_sequence_length,
            device=self._mesh.device,
        )
        if self._offload:
            self._encoder.to("cpu")
            if self._mesh.device.type == "cuda":
                torch.cuda.empty_cache()
        return embeddings.to(self._dtype)

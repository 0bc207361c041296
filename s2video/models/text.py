"""Encoding of prompts to text conditioning, with a cache.

The encoders run on the mesh's main rank only; their outputs are broadcast and cached by prompt. Encoders can be away
from the device between uses. Does not know how the embeddings are used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import cpu_offload
from torch import Tensor

from ..parallel.collectives import broadcast_tensors
from ..parallel.mesh import Mesh
from ..parallel.offload import Offloaded, keep_on_cpu
from .base import Conditioning
from .family import Family, Prompts
from .images import Images
from .prompts import TextReader, text_readers
from .tokens import pad_text

_CACHED = 16  # cached embeddings, on every rank's device: 4 MiB each for Wan in bfloat16


class TextEncoder:
    """A family's text encoders with a cache.

    Args:
        pipeline: diffusers pipeline with tokenizers and encoders on the main rank; None on the others.
        dtype: dtype of the embeddings.
        offload: free the encoders' memory on the device after each use; they stay in CPU memory.
        stream: keep the encoders in CPU memory and copy each layer to the device when it runs (by accelerate). This
            costs little, because each prompt is encoded once, and takes no memory or time of other ranks.
    """

    def __init__(
        self,
        family: Family,
        pipeline: Any,
        mesh: Mesh,
        *,
        dtype: torch.dtype,
        offload: bool,
        stream: bool = False,
    ) -> None:
        self._family = family
        self._mesh = mesh
        self._dtype = dtype
        self._stream = stream
        self._is_kept = False
        self._offloaded: list[Offloaded] = []
        self._cache: dict[tuple[Any, ...], Conditioning] = {}
        self._pipeline = pipeline
        if pipeline is not None:
            self._encoders = [getattr(pipeline, name) for name in family.components if name.startswith("text_encoder")]
            if stream:
                for encoder in self._encoders:
                    cpu_offload(encoder, execution_device=mesh.device)
            elif offload:
                # a single video needs them once
                self._offloaded = [keep_on_cpu(encoder, mesh.device, pins_from=2) for encoder in self._encoders]

    @property
    def readers(self) -> list[TextReader]:
        """How the encoders read prompts, on the main rank; empty on the others."""
        if self._pipeline is None:
            return []
        names = [name for name in self._family.components if name.startswith("tokenizer")]
        return text_readers(self._family, {name: getattr(self._pipeline, name) for name in names})

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        max_sequence_length: int,
        images: Images | None = None,
        is_negative: bool = False,
    ) -> Conditioning:
        """Return the conditioning of a batch on the mesh's device, padded to its longest prompt. All ranks call this.

        Args:
            max_sequence_length: tokens of an embedding; longer prompts are truncated. If the model attends to padding,
                it is part of the embedding.
            images: the video's images. Most encoders ignore them.
            is_negative: whether these are prompts of the uncond pass.
        """
        inputs: tuple[Any, ...] = (max_sequence_length,)
        if self._family.text_sees_image and images is not None:
            inputs = (*inputs, is_negative, *images.digests())
        else:
            images = None
        keys = [(prompt, *inputs) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._cache}
        if missing:
            encoded = None
            if self._pipeline is not None:
                encoded = self._encode(
                    Prompts(list(missing.values()), max_sequence_length, self._mesh.device, images, is_negative)
                )
            received = broadcast_tensors(encoded, self._mesh.world, self._mesh.device)
            for key, *rows in zip(missing, *(tensor.split(1) for tensor in received), strict=True):
                # clone, because a cached view would keep the whole batch in memory
                self._cache[key] = self._family.conditioning(*(row.clone() for row in rows))
        batch = _batch([self._cache[key] for key in keys])
        for key in keys:  # order by last use; every rank evicts the same entries
            self._cache[key] = self._cache.pop(key)
        for key in list(self._cache)[:-_CACHED]:
            del self._cache[key]
        return batch

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the encoders on the device from their first use in the block to its end, if they are offloaded."""
        self._is_kept = True
        try:
            yield
        finally:
            self._is_kept = False
            self._release()

    @torch.no_grad()
    def _encode(self, prompts: Prompts) -> tuple[Tensor, ...]:
        for encoder in self._offloaded:
            encoder.bring()
        if not self._offloaded and not self._stream:
            for module in self._encoders:
                module.to(self._mesh.device)
        encoded = self._family.encode(self._pipeline, prompts)
        if not self._is_kept:
            self._release()
        return tuple(tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in encoded)

    def _release(self) -> None:
        for encoder in self._offloaded:
            encoder.release()
        if self._offloaded and self._mesh.device.type == "cuda":
            torch.cuda.empty_cache()


def _batch(prompts: Sequence[Conditioning]) -> Conditioning:
    lengths = [length for prompt in prompts for length in prompt.text_lengths or ()]
    lengths_2 = [length for prompt in prompts for length in prompt.text_2_lengths or ()]
    seconds = [prompt.text_2 for prompt in prompts if prompt.text_2 is not None]
    pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
    return Conditioning(
        text=_padded([prompt.text for prompt in prompts]),
        text_lengths=tuple(lengths) or None,
        text_2=_padded(seconds) if seconds else None,
        text_2_lengths=tuple(lengths_2) or None,
        pooled=torch.cat(pooled) if pooled else None,
    )


def _padded(texts: Sequence[Tensor]) -> Tensor:
    longest = max(text.shape[1] for text in texts)
    return torch.cat([pad_text(text, longest) for text in texts])

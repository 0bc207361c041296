"""What prompts and images are to the transformer: their encoders, and what a user should know of their reading."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config.run import RunConfig
from ..config.sections import ModelConfig
from ..guidance.equations import needs_uncond
from ..models.base import Conditioning, ImageConditioning
from ..models.checkpoint import Checkpoint
from ..models.control import Control, Pictures
from ..models.image_encoder import ImageEncoder
from ..models.images import Images
from ..models.loading import load_conditioners
from ..models.prompts import cut_prompts, cut_warning
from ..models.text import TextEncoder
from ..parallel.mesh import Mesh
from ..system.terminal import say
from .statement import Batch


class Encoders:
    """Encoders of text and images, on the main rank; all ranks construct it and get what they return.

    Args:
        vae: encodes images; needed on the main rank.
    """

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig, mesh: Mesh, vae: Any) -> None:
        self._info = checkpoint.info
        self._mesh = mesh
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._said: set[tuple[str, str]] = set()
        pipeline, family = None, checkpoint.family
        if mesh.is_main:
            dtypes = (getattr(torch, dtype) for dtype in (model.text_encoder_dtype, model.image_encoder_dtype))
            pipeline = family.build_pipeline(load_conditioners(checkpoint, *dtypes), vae)
        self._encode_images = ImageEncoder(family, pipeline, mesh, offload=model.offload_text_encoder)
        self._encode_text = TextEncoder(
            family,
            pipeline,
            mesh,
            dtype=self._dtype,
            offload=model.offload_text_encoder,
            stream=model.stream_text_encoder,
        )

    def text(
        self, batch: Batch, config: RunConfig, images: Pictures | None = None
    ) -> tuple[Conditioning, Conditioning | None]:
        """Return what the cond and the uncond pass are told of a batch; None for the second where λ is 1."""

        def encode(texts: Sequence[str], *, is_negative: bool) -> Conditioning:
            text = self._encode_text(
                texts,
                max_sequence_length=config.sampling.max_sequence_length,
                images=images if isinstance(images, Images) else None,
                is_negative=is_negative,
            )
            return replace(text, guidance=config.guidance.embedded_scale)

        with self._encode_text.kept():
            cond = encode(batch.prompts, is_negative=False)
            if not any(map(needs_uncond, config.guidance.cfg_scales)):
                return cond, None
            return cond, encode([batch.negative_prompt] * len(batch.prompts), is_negative=True)

    def images(self, images: Pictures | None, latents: Tensor, config: RunConfig) -> ImageConditioning:
        """Return what the images of a batch fix of its latents [B, C, T, H, W], which the VAE encodes."""
        fixed = self._encode_images(images, latents)
        if not self._info.control_layers:
            return fixed
        # in the transformer's precision, as in diffusers' pipeline
        scales = torch.tensor(config.control.scales(self._info.control_layers)).to(latents.device, self._dtype)
        return replace(fixed, num_references=num_references(images), control_scales=scales)

    def cut_prompts(self, config: RunConfig) -> list[dict[str, Any]]:
        """Return which prompts of the config are longer than the model reads; main rank only, none on others."""
        return cut_prompts(config, self._encode_text.readers)

    def warn_of_cut_prompts(self, batch: Batch, config: RunConfig) -> None:
        """Say once for each prompt that the model reads only its beginning."""
        for prompt in dict.fromkeys(batch.prompts):
            texts = {"prompt": prompt, "negative_prompt": batch.negative_prompt}
            for cut in self.cut_prompts(config.model_copy(update=texts)):
                self._say_once(f"warning: {cut_warning(cut)}", texts[cut["field"]])

    def say_notes(self, control: Control) -> None:
        """Say once what the user should know about the files of control."""
        for note in control.notes if self._mesh.is_main else ():
            self._say_once(note, "")

    def _say_once(self, sentence: str, about: str) -> None:
        if (sentence, about) not in self._said:
            self._said.add((sentence, about))
            say(sentence)


def num_references(images: Pictures | None) -> int:
    """Return the frames that references have before those of the video, in the latents."""
    return len(images.references) if isinstance(images, Control) else 0

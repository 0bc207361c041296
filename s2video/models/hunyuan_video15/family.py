"""Checkpoints of HunyuanVideo 1.5's pipelines. Imports torch only inside methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...decoding.kinds import HUNYUAN15_VAE
from ...errors import InputError
from ..costs import TransformerCosts
from ..family import CheckpointInfo, Family, JsonFile, Prompts, SecondText
from ..hunyuan_video.family import set_even_sigmas
from .costs import HunyuanVideo15Costs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base import BlockModel, Conditioning, ImageConditioning
    from ..images import Images


class HunyuanVideo15(Family):
    """Text to video."""

    pipeline = "HunyuanVideo15Pipeline"
    block_lists = ("transformer_blocks",)
    second_text = SecondText("ByT5", 256, only_quoted=True)
    classes: ClassVar[Mapping[str, str]] = {
        "tokenizer": "Qwen2Tokenizer",
        "text_encoder": "Qwen2_5_VLTextModel",
        "tokenizer_2": "ByT5Tokenizer",
        "text_encoder_2": "T5EncoderModel",
        "transformer": "HunyuanVideo15Transformer3DModel",
        "vae": HUNYUAN15_VAE,
    }

    @classmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        return HunyuanVideo15Costs.from_config(config)

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        if transformer.values.get("use_meanflow"):
            raise InputError(
                f"{transformer.path}: use_meanflow: expected false, got true (a step-distilled checkpoint); choose one "
                "without step_distilled in its name"
            )
        patch, channels = transformer.count("patch_size", 1), vae.count("latent_channels", 32)
        expected, found = 2 * channels + 1, transformer.count("in_channels", 65)
        if found != expected:
            raise InputError(
                f"{transformer.path}: in_channels: expected {expected} (noisy latents, image latents and a mask), "
                f"got {found}; choose another checkpoint"
            )
        return CheckpointInfo(
            num_blocks=transformer.count("num_layers", 54),
            patch_size=(transformer.count("patch_size_t", 1), patch, patch),
            max_positions=None,
            spatial_factor=vae.count("spatial_compression_ratio", 16),
            temporal_factor=vae.count("temporal_compression_ratio", 4),
            latent_channels=channels,
            vae_class=self.components["vae"],
            takes_lora=False,
        )

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        """Return the pipeline without a guider, because `guidance.cfg_scale` replaces the guider's scale."""
        return super().build_pipeline({**conditioners, "guider": None}, vae)

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from .blocks import HunyuanVideo15BlockModel

        return HunyuanVideo15BlockModel(transformer, attention_backend=attention_backend)

    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Return Qwen's text [B, max_sequence_length, D_text] and ByT5's glyph text [B, M_2, D_text_2], with masks.

        Each prompt is put in the pipeline's template; glyph text is the part of a prompt in quotes.
        """
        pipeline.tokenizer_max_length = prompts.max_sequence_length
        text, mask, text_2, mask_2 = pipeline.encode_prompt(
            prompts.texts, device=prompts.device, batch_size=len(prompts.texts)
        )
        return text, mask.int(), text_2, mask_2.int()  # in half precision, the sum of a mask could be inexact

    def conditioning(self, *rows: Tensor) -> Conditioning:
        from ..base import Conditioning

        text, mask, text_2, mask_2 = rows
        length, length_2 = int(mask.sum()), int(mask_2.sum())
        return Conditioning(
            text[:, :length], text_lengths=(length,), text_2=text_2[:, :length_2], text_2_lengths=(length_2,)
        )

    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        set_even_sigmas(scheduler, num_steps, device)

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        """Return zeros as latents and mask, which mean no image."""
        from ..base import ImageConditioning

        _, channels, *shape = latents.shape
        return ImageConditioning(channels=latents.new_zeros(1, channels + 1, *shape))


class HunyuanVideo15ImageToVideo(HunyuanVideo15):
    """Image to video."""

    pipeline = "HunyuanVideo15ImageToVideoPipeline"
    classes: ClassVar[Mapping[str, str]] = {
        **HunyuanVideo15.classes,
        "image_encoder": "SiglipVisionModel",
        "feature_extractor": "SiglipImageProcessor",
    }

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        return replace(super().describe(transformer, vae), image="required")

    def encode_images(
        self, pipeline: Any, images: Images, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return SigLIP's features [1, M_image, D_image], and latents and mask [1, C + 1, T, H, W].

        The latents are the first image's, with zeros for later frames; the mask marks the first frame.
        """
        import torch

        features = pipeline.encode_image(images.first, batch_size=1, device=device, dtype=pipeline.image_encoder.dtype)
        width, height = images.first.size
        latents_and_mask = pipeline.prepare_cond_latents_and_mask(
            latents, images.first, 1, height, width, latents.dtype, device
        )
        return features, torch.cat(latents_and_mask, dim=1)

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        from ..base import ImageConditioning

        features, channels = encoded
        return ImageConditioning(channels=channels, features=features)

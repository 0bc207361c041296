"""Checkpoints of HunyuanVideo's pipelines. Imports torch only inside methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...decoding.kinds import HUNYUAN_VAE
from ...errors import InputError
from ..costs import TransformerCosts
from ..family import CheckpointInfo, Family, JsonFile, Prompts, SecondText
from .costs import HunyuanVideoCosts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base import BlockModel, Conditioning, ImageConditioning
    from ..images import Images


class HunyuanVideo(Family):
    """Text to video.

    Attributes:
        image_condition: how images enter the transformer, as the `image_condition_type` of diffusers.
        published: a published checkpoint of this kind.
    """

    pipeline = "HunyuanVideoPipeline"
    image_condition: ClassVar[str | None] = None
    published: ClassVar[str] = "hunyuanvideo-community/HunyuanVideo"
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    second_text = SecondText("CLIP", 77)
    classes: ClassVar[Mapping[str, str]] = {
        # model_index.json names LlamaTokenizerFast; in transformers 5, that class ignores tokenizer.json and splits
        # text as for Llama 1 and 2, which is wrong for Llama 3
        "tokenizer": "PreTrainedTokenizerFast",
        "text_encoder": "LlamaModel",
        "tokenizer_2": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModel",
        "transformer": "HunyuanVideoTransformer3DModel",
        "vae": HUNYUAN_VAE,
    }

    @classmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        return HunyuanVideoCosts.from_config(config)

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        if (kind := transformer.values.get("image_condition_type")) != self.image_condition:
            raise InputError(
                f"{transformer.path}: image_condition_type: expected {self.image_condition!r} with "
                f"{self.pipeline}, got {kind!r}; choose a checkpoint like {self.published}"
            )
        patch = transformer.count("patch_size", 2)
        return CheckpointInfo(
            num_blocks=transformer.count("num_layers", 20) + transformer.count("num_single_layers", 40),
            patch_size=(transformer.count("patch_size_t", 1), patch, patch),
            max_positions=None,
            spatial_factor=vae.count("spatial_compression_ratio", 8),
            temporal_factor=vae.count("temporal_compression_ratio", 4),
            latent_channels=vae.count("latent_channels", 16),
            vae_class=self.components["vae"],
        )

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from .blocks import HunyuanVideoBlockModel

        return HunyuanVideoBlockModel(transformer, attention_backend=attention_backend)

    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Return LLaMA's text [B, max_sequence_length, D_text], CLIP's pooled [B, D_pooled], and the text's mask.

        Each prompt is put in the pipeline's template.
        """
        return tuple(
            pipeline.encode_prompt(
                prompts.texts, device=prompts.device, max_sequence_length=prompts.max_sequence_length
            )
        )

    def conditioning(self, *rows: Tensor) -> Conditioning:
        from ..base import Conditioning

        text, pooled, mask = rows
        length = int(mask.sum())
        return Conditioning(text[:, :length], text_lengths=(length,), pooled=pooled)

    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        set_even_sigmas(scheduler, num_steps, device)


class HunyuanVideoImageToVideo(HunyuanVideo):
    """Image to video in the form where the image fixes the first latent frame (token_replace)."""

    pipeline = "HunyuanVideoImageToVideoPipeline"
    image_condition = "token_replace"
    published = "hunyuanvideo-community/HunyuanVideo-I2V"
    text_sees_image = True
    classes: ClassVar[Mapping[str, str]] = {
        **HunyuanVideo.classes,
        "text_encoder": "LlavaForConditionalGeneration",
        "image_processor": "CLIPImageProcessor",
    }

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        return replace(super().describe(transformer, vae), image="required")

    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Return the tensors of `HunyuanVideo.encode`, with image tokens before those of the prompt.

        Cond gets every fourth token of the image. Uncond gets a black image and the pipeline's default of every second
        token.
        """
        import torch
        from PIL import Image

        assert prompts.images is not None
        image = prompts.images.first
        if prompts.is_negative:
            seen: dict[str, Any] = {"image": Image.new("RGB", image.size)}
        else:
            seen = {"image": image, "image_embed_interleave": 4}
        # one by one, because the pipeline takes one image and handles a truncated prompt correctly only if it is alone
        encoded = [
            pipeline.encode_prompt(
                prompt=text, device=prompts.device, max_sequence_length=prompts.max_sequence_length, **seen
            )
            for text in prompts.texts
        ]
        return tuple(torch.cat(rows) for rows in zip(*encoded, strict=True))

    def encode_images(
        self, pipeline: Any, images: Images, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return the image's latent frame [1, C, 1, H, W]: the mode of the VAE's distribution, so nothing is random."""
        import torch

        width, height = images.first.size
        image = pipeline.video_processor.preprocess(images.first).to(device, pipeline.vae.dtype)
        _, frame = pipeline.prepare_latents(
            image,
            batch_size=1,
            num_channels_latents=latents.shape[1],
            height=height,
            width=width,
            num_frames=1,
            dtype=torch.float32,
            device=device,
            latents=latents[:, :, :1],
            image_condition_type=self.image_condition,
        )
        return (frame,)

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        from ..base import ImageConditioning

        (frame,) = encoded
        return ImageConditioning(frames=frame, noise_share=0.999)


def set_even_sigmas(scheduler: Any, num_steps: int, device: torch.device) -> None:
    """Set n = `num_steps` evenly spaced sigmas from 1 to 1/n, before the scheduler shifts them.

    A scheduler that takes no sigmas, such as Heun's, sets its own.
    """
    import inspect

    import numpy as np

    if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(num_steps, device=device)
        return
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1], device=device)

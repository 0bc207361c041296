"""The checkpoints of HunyuanVideo's pipelines. Imports torch only where a method needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError
from .family import CheckpointInfo, Family, JsonFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .base import BlockModel, Conditioning
    from .images import Images


class HunyuanVideo(Family):
    pipeline = "HunyuanVideoPipeline"
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    classes: ClassVar[Mapping[str, str]] = {
        # model_index.json says LlamaTokenizerFast; that of transformers 5 splits text as Llama 1 and 2 do, whatever
        # tokenizer.json says, and Llama 3's is another
        "tokenizer": "PreTrainedTokenizerFast",
        "text_encoder": "LlamaModel",
        "tokenizer_2": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModel",
        "transformer": "HunyuanVideoTransformer3DModel",
        "vae": "AutoencoderKLHunyuanVideo",
    }

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        if (kind := transformer.values.get("image_condition_type")) is not None:
            raise InputError(
                f"{transformer.path}: image_condition_type {kind!r}: is an image-to-video checkpoint, which is not "
                "supported: choose the text-to-video one"
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
        from .hunyuan_video import HunyuanVideoBlockModel

        return HunyuanVideoBlockModel(transformer, attention_backend=attention_backend)

    def encode(
        self,
        pipeline: Any,
        prompts: list[str],
        *,
        images: Images | None,
        is_negative: bool,
        max_sequence_length: int,
        device: torch.device,
    ) -> tuple[Tensor, ...]:
        """LLaMA's text [B, max_sequence_length, D_text], CLIP's pooled [B, D_pooled], and the text's mask, the template
        around each prompt being the pipeline's."""
        return tuple(pipeline.encode_prompt(prompts, device=device, max_sequence_length=max_sequence_length))

    def conditioning(self, *rows: Tensor) -> Conditioning:
        from .base import Conditioning

        text, pooled, mask = rows
        length = int(mask.sum())
        return Conditioning(text[:, :length], text_lengths=(length,), pooled=pooled)

    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        set_even_sigmas(scheduler, num_steps, device)


def set_even_sigmas(scheduler: Any, num_steps: int, device: torch.device) -> None:
    """Evenly spaced sigmas down to 1/n, before the scheduler shifts them."""
    import numpy as np

    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1], device=device)

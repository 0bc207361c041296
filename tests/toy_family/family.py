"""The toy's checkpoints: Wan's text encoder, VAE and scheduler around a transformer of its own."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from s2video.decoding.kinds import WAN_VAE
from s2video.models.base import BlockModel, Conditioning
from s2video.models.costs import TransformerCosts
from s2video.models.family import CheckpointInfo, Family, JsonFile, Prompts
from toy_family.costs import ToyCosts


class Toy(Family):
    pipeline = "ToyPipeline"
    block_lists = ("blocks",)
    classes: ClassVar[Mapping[str, str]] = {
        "tokenizer": "AutoTokenizer",
        "text_encoder": "UMT5EncoderModel",
        "transformer": "ToyTransformer3DModel",
        "vae": WAN_VAE,
    }

    @classmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        return ToyCosts.from_config(config)

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        return CheckpointInfo(
            num_blocks=transformer.count("num_layers", 4),
            patch_size=(1, 1, 1),
            max_positions=None,
            spatial_factor=vae.count("scale_factor_spatial", 8),
            temporal_factor=vae.count("scale_factor_temporal", 4),
            latent_channels=vae.count("z_dim", 16),
        )

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        return SimpleNamespace(**conditioners, vae=vae)

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from toy_family.blocks import ToyBlockModel

        return ToyBlockModel(transformer)

    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        tokens = pipeline.tokenizer(
            prompts.texts,
            padding="max_length",
            max_length=prompts.max_sequence_length,
            truncation=True,
            return_tensors="pt",
        )
        return (pipeline.text_encoder(tokens.input_ids.to(prompts.device)).last_hidden_state,)

    def conditioning(self, *rows: Tensor) -> Conditioning:
        return Conditioning(rows[0])

    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        scheduler.set_timesteps(num_steps, device=device)

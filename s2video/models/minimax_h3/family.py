"""Checkpoints of MiniMax-H3's modular pipeline, text to video with sound. Imports torch only inside methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from ...decoding.kinds import MINIMAX_H3_VAE
from ...errors import InputError
from ..costs import TransformerCosts
from ..family import CheckpointInfo, Family, JsonFile, Prompts
from .costs import MiniMaxH3Costs
from .shape import CLIP, DROPPED, SPATIAL_FACTOR, TEMPORAL_FACTOR, sound_shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base import BlockModel, Conditioning

_TEXT_LAYER = 50  # of the text encoder: the transformer was trained with its output


class MiniMaxH3(Family):
    """Text to video with sound (the workflow t2va), with the transformer of the folder transformer/."""

    pipeline = "MiniMaxH3ModularPipeline"
    block_lists = ("transformer_blocks",)
    takes_float32 = True
    classes: ClassVar[Mapping[str, str]] = {
        "tokenizer": "Qwen2Tokenizer",
        "text_encoder": "Qwen3VLForConditionalGeneration",
        "transformer": "MiniMaxH3Transformer3DModel",
        "vae": MINIMAX_H3_VAE,
        "audio_vae": "AutoencoderKLMiniMaxH3Audio",
        "audio_scheduler": "MiniMaxH3Scheduler",
    }

    @classmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        return MiniMaxH3Costs.from_config(config)

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        factors = {
            "clip_length": vae.count("clip_length", CLIP),
            "token_drop": vae.count("token_drop", DROPPED),
            "spatial_downsample_factors": _product(vae, "spatial_downsample_factors", SPATIAL_FACTOR),
            "temporal_downsample_factors": _product(vae, "temporal_downsample_factors", TEMPORAL_FACTOR),
        }
        expected = dict(zip(factors, (CLIP, DROPPED, SPATIAL_FACTOR, TEMPORAL_FACTOR), strict=True))
        for key, found in factors.items():
            if found != expected[key]:
                what = "a product of " if "factors" in key else ""
                raise InputError(
                    f"{vae.path}: {key}: expected {what}{expected[key]}, as MiniMax-H3 has, got {found}; choose "
                    "another checkpoint"
                )
        patch = transformer.values.get("patch_size", [1, 2, 2])
        if patch != [1, 2, 2]:
            raise InputError(
                f"{transformer.path}: patch_size: expected [1, 2, 2], got {patch!r}; choose another checkpoint"
            )
        return CheckpointInfo(
            num_blocks=transformer.count("num_layers", 50),
            patch_size=(1, 2, 2),
            max_positions=None,
            spatial_factor=SPATIAL_FACTOR,
            temporal_factor=TEMPORAL_FACTOR,
            latent_channels=vae.count("latent_channels", 24),
            vae_class=self.components["vae"],
            sound=sound_shape(transformer.count("audio_in_channels", 32)),
            has_uncond=False,
            counts_end=True,
        )

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        """Return the conditioners by name; diffusers' pipeline of this model is a chain of blocks."""
        layers = conditioners["text_encoder"].config.text_config.num_hidden_layers
        if layers <= _TEXT_LAYER:
            raise InputError(
                f"{self.index.path.parent / 'text_encoder'}: expected more than {_TEXT_LAYER} layers, because the "
                f"transformer reads the output of layer {_TEXT_LAYER}, got {layers}; choose another checkpoint"
            )
        return SimpleNamespace(**conditioners, vae=vae)

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from .blocks import MiniMaxH3BlockModel

        return MiniMaxH3BlockModel(transformer, attention_backend=attention_backend)

    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Return the text encoder's states [B, longest, D_text], and a mask of the tokens that are not padding.

        Prompts are encoded one by one, without a template, as they are.
        """
        import torch
        from diffusers.modular_pipelines.minimax_h3.encoders import get_qwen3vl_prompt_embeds
        from torch.nn.utils.rnn import pad_sequence

        rows = []
        for text in prompts.texts:
            tokens = pipeline.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            rows.append(
                get_qwen3vl_prompt_embeds(
                    pipeline.text_encoder,
                    _TextOnly(),
                    tokens[: prompts.max_sequence_length],
                    text_encoder_layer=_TEXT_LAYER,
                    device=prompts.device,
                    dtype=pipeline.text_encoder.dtype,
                )[0]
            )
        masks = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
        return pad_sequence(rows, batch_first=True), pad_sequence(masks, batch_first=True)

    def conditioning(self, *rows: Tensor) -> Conditioning:
        from ..base import Conditioning

        text, mask = rows
        length = int(mask.sum())
        return Conditioning(text[:, :length], text_lengths=(length,))

    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        """Set the timesteps on the CPU, where the rows of each step are planned."""
        scheduler.set_timesteps(num_steps)

    def complete_scheduler(self, scheduler: Any, folder: Path, info: CheckpointInfo) -> Any:
        """Return the picture's scheduler paired with that of the sound, which is in a folder of its own."""
        from diffusers import MiniMaxH3Scheduler

        from .schedulers import PairedScheduler

        if not isinstance(scheduler, MiniMaxH3Scheduler):
            raise InputError(
                f"{folder / 'scheduler'}: expected MiniMaxH3Scheduler, got {type(scheduler).__name__}; choose another "
                "checkpoint"
            )
        sound = MiniMaxH3Scheduler.from_pretrained(folder, subfolder="audio_scheduler")
        assert info.sound is not None
        return PairedScheduler(scheduler, sound, info.sound)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, info: CheckpointInfo) -> Tensor:
        """Return noise of the picture, then, from the same generator, of the sound."""
        import torch

        from ...decoding.sound import join_sound

        picture = torch.randn(shape, generator=generator)
        sound = info.sound
        assert sound is not None
        rows = torch.randn((sound.num_rows(shape[2]), sound.width), generator=generator)
        return join_sound(picture, rows[None])


class _TextOnly:
    """What stands for the text encoder's processor where there is nothing but text."""

    def create_mm_token_type_ids(self, input_ids: list[list[int]]) -> list[list[int]]:
        return [[0] * len(ids) for ids in input_ids]


def _product(file: JsonFile, key: str, default: int) -> object:
    """Return the product of a list of whole numbers, or what is there instead."""
    values = file.values.get(key)
    if values is None:
        return default
    is_list = isinstance(values, list) and all(type(value) is int for value in values)
    return math.prod(values) if is_list else values

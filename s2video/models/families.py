"""The pipelines whose checkpoints can be loaded, and all in which they differ.

A class for each, chosen by the pipeline's name in model_index.json. Imports torch, diffusers and the models only where
a method needs them: the command line reads a checkpoint's bounds before it spends seconds on those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .base import BlockModel, Conditioning

WAN_VAE = "AutoencoderKLWan"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's JSON files say of the requests that it can serve.

    Attributes:
        num_blocks: transformer blocks.
        patch_size: latent frames, rows and columns that make one token.
        max_positions: positions of the rotary embedding, along each of time, height and width; None: any number.
        spatial_factor: pixels to a latent cell, along height and width.
        temporal_factor: frames to a latent frame, after the first.
        latent_channels: channels of the VAE's latents.
        vae_class: diffusers' name of the VAE's class.
        transformers: the components that denoise.
    """

    num_blocks: int
    patch_size: tuple[int, int, int]
    max_positions: int | None
    spatial_factor: int
    temporal_factor: int
    latent_channels: int = 16
    vae_class: str = WAN_VAE
    transformers: tuple[str, ...] = ("transformer",)


@dataclass(frozen=True)
class JsonFile:
    """A component's settings, and the file they are from."""

    path: Path
    values: dict[str, Any]

    def count(self, key: str, default: int) -> int:
        """A whole number > 0; the default is that of diffusers' constructor. Raises InputError for anything else."""
        value = self.values.get(key, default)
        if not _is_count(value):
            raise InputError(f"checkpoint file {self.path}: {key}: expected a whole number > 0, came {value!r}")
        return int(value)


class Family(ABC):
    """One pipeline of diffusers.

    Attributes:
        pipeline: its class.
        components: the checkpoint's folders, and the class that loads each; beside these the scheduler, of any class.
        block_lists: the transformer's lists of blocks, in the order in which they run.
    """

    pipeline: ClassVar[str]
    block_lists: ClassVar[tuple[str, ...]]
    components: ClassVar[Mapping[str, str]]

    @property
    def weighted(self) -> tuple[str, ...]:
        """The components that have weights."""
        return tuple(name for name in self.components if not name.startswith("tokenizer"))

    @abstractmethod
    def describe(self, index: JsonFile, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        """Bounds from model_index.json and both config.json. Raises InputError where the model is of another kind."""

    @abstractmethod
    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel: ...

    @abstractmethod
    def encode(
        self, pipeline: Any, prompts: list[str], *, max_sequence_length: int, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Prompts -> tensors with a row for each, through diffusers' pipeline of tokenizers and text encoders."""

    @abstractmethod
    def conditioning(self, *rows: Tensor) -> Conditioning:
        """One prompt's row of each of those tensors, [1, ...] -> its conditioning, padding cut off."""

    @abstractmethod
    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        """Lay out the noise schedule as the pipeline does."""


class _Wan(Family):
    pipeline = "WanPipeline"
    block_lists = ("blocks",)
    components: ClassVar[Mapping[str, str]] = {
        "tokenizer": "AutoTokenizer",
        "text_encoder": "UMT5EncoderModel",
        "transformer": "WanTransformer3DModel",
        "vae": WAN_VAE,
    }

    def describe(self, index: JsonFile, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        if index.values.get("transformer_2") not in (None, [None, None]) or index.values.get("expand_timesteps"):
            raise InputError(
                f"{index.path.parent}: is a Wan 2.2 checkpoint, which is not supported: choose a Wan 2.1 one"
            )
        patch_size = transformer.values.get("patch_size", [1, 2, 2])
        if not isinstance(patch_size, list) or len(patch_size) != 3 or any(not _is_count(p) for p in patch_size):
            raise InputError(f"{transformer.path}: patch_size: expected three whole numbers > 0, came {patch_size!r}")
        return CheckpointInfo(
            num_blocks=transformer.count("num_layers", 40),
            patch_size=(patch_size[0], patch_size[1], patch_size[2]),
            max_positions=transformer.count("rope_max_seq_len", 1024),
            spatial_factor=vae.count("scale_factor_spatial", 8),
            temporal_factor=vae.count("scale_factor_temporal", 4),
            latent_channels=vae.count("z_dim", 16),
            vae_class=self.components["vae"],
        )

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from .wan import WanBlockModel

        return WanBlockModel(transformer, attention_backend=attention_backend)

    def encode(
        self, pipeline: Any, prompts: list[str], *, max_sequence_length: int, device: torch.device
    ) -> tuple[Tensor, ...]:
        """[B, max_sequence_length, D_text], zero after each prompt's end: Wan attends to the padding."""
        text, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length, device=device
        )
        return (text,)

    def conditioning(self, *rows: Tensor) -> Conditioning:
        from .base import Conditioning

        return Conditioning(rows[0])

    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        scheduler.set_timesteps(num_steps, device=device)


class _HunyuanVideo(Family):
    pipeline = "HunyuanVideoPipeline"
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    components: ClassVar[Mapping[str, str]] = {
        # model_index.json says LlamaTokenizerFast; that of transformers 5 splits text as Llama 1 and 2 do, whatever
        # tokenizer.json says, and Llama 3's is another
        "tokenizer": "PreTrainedTokenizerFast",
        "text_encoder": "LlamaModel",
        "tokenizer_2": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModel",
        "transformer": "HunyuanVideoTransformer3DModel",
        "vae": "AutoencoderKLHunyuanVideo",
    }

    def describe(self, index: JsonFile, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
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
        self, pipeline: Any, prompts: list[str], *, max_sequence_length: int, device: torch.device
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
        """Evenly spaced sigmas down to 1/n, before the scheduler shifts them."""
        import numpy as np

        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1], device=device)


FAMILIES: dict[str, Family] = {family.pipeline: family for family in (_Wan(), _HunyuanVideo())}


def family_of(index: JsonFile) -> Family:
    """The family that a checkpoint's model_index.json names.

    Raises:
        InputError: a pipeline that is none of them, or a component of another class.
    """
    folder, name = index.path.parent, index.values.get("_class_name")
    if name not in FAMILIES:
        raise InputError(
            f"{folder}: a checkpoint in diffusers format of {' or '.join(FAMILIES)} was expected, but "
            f"model_index.json says {name!r}"
        )
    family = FAMILIES[name]
    for component in family.weighted:
        expected, entry = family.components[component], index.values.get(component)
        if not isinstance(entry, list) or entry[-1:] != [expected]:
            raise InputError(f"{index.path}: {component}: {expected} was expected, came {entry!r}")
    return family


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

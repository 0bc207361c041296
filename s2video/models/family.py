"""What the engine has to know of a pipeline's checkpoints: components, bounds, conditioning, costs, lists of blocks.

There is one class for each pipeline of diffusers, in the folder of its model; `registry` lists them. Torch, diffusers
and the block models are imported within methods only: the command line reads a checkpoint's bounds before it spends
seconds on those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..decoding.kinds import WAN_VAE
from ..errors import InputError
from .costs import TransformerCosts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .base import BlockModel, Conditioning, ImageConditioning
    from .images import Images

_AS_GOOD = {"CLIPVisionModel": "CLIPVisionModelWithProjection"}  # the same with one more, unused layer


@dataclass(frozen=True)
class CheckpointInfo:
    """The requests that a checkpoint can serve, as its JSON files tell.

    Attributes:
        num_blocks: transformer blocks; of two transformers, of each.
        patch_size: latent frames, rows and columns that make one token.
        max_positions: positions of the rotary embedding, along each of time, height and width; None: any number.
        spatial_factor: pixels to a latent cell, along height and width.
        temporal_factor: frames to a latent frame, after the first.
        latent_channels: channels of the VAE's latents.
        vae_class: diffusers' name of the VAE's class.
        boundary_ratio: the part of the training timesteps below which the second of two transformers takes over,
            0 … 1; None: there is one.
        time_per_token: whether the timestep is embedded for each token.
        image: whether a first image can, or must, be given.
        last_image: whether a last image can, or must, be given with the first.
        text_length: number of text tokens, padding included, that the transformer needs; None: any number.
        takes_lora: whether diffusers loads LoRAs for its pipeline.
    """

    num_blocks: int
    patch_size: tuple[int, int, int]
    max_positions: int | None
    spatial_factor: int
    temporal_factor: int
    latent_channels: int = 16
    vae_class: str = WAN_VAE
    boundary_ratio: float | None = None
    time_per_token: bool = False
    image: Literal["none", "optional", "required"] = "none"
    last_image: Literal["none", "optional", "required"] = "none"
    text_length: int | None = None
    takes_lora: bool = True


@dataclass(frozen=True)
class JsonFile:
    """A component's settings, and their file."""

    path: Path
    values: dict[str, Any]

    def count(self, key: str, default: int) -> int:
        """Return a whole number > 0; `default` is that of diffusers' constructor. Raises InputError for others."""
        value = self.values.get(key, default)
        if not is_count(value):
            raise InputError(f"checkpoint file {self.path}: {key}: expected a whole number > 0, got {value!r}")
        return int(value)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Prompts:
    """What the text encoders read.

    Attributes:
        texts: the prompts.
        max_sequence_length: tokens of an embedding; longer prompts are cut off.
        device: where the encoders are.
        images: the video's, if the family's `text_sees_image`; else None.
        is_negative: these are prompts of the uncond pass.
    """

    texts: list[str]
    max_sequence_length: int
    device: torch.device
    images: Images | None = None
    is_negative: bool = False


class Family(ABC):
    """One checkpoint of one pipeline of diffusers.

    Args:
        index: its model_index.json.

    Attributes:
        pipeline: the pipeline's class.
        classes: the folders that such a checkpoint can have, and the class that loads each; the scheduler, which can be
            of any class, is not among them.
        optional: those of them that can be missing.
        block_lists: the transformer's lists of blocks, in the order in which they run.
        block_returns: what a block returns, in this order, under the names of its arguments.
        cond_context: the name that the pipeline gives to `cache_context` for its conditional call; None: it gives none,
            so `s2video.enable` refuses the pipeline.
        components: the folders that this one has, with their classes.
        text_sees_image: the text encoder is shown the first image with the prompt.

    Raises:
        InputError: a component that is missing, or of another class.
    """

    pipeline: ClassVar[str]
    classes: ClassVar[Mapping[str, str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    block_lists: ClassVar[tuple[str, ...]]
    block_returns: ClassVar[tuple[str, ...]] = ("hidden_states",)
    cond_context: ClassVar[str | None] = "cond"
    text_sees_image: ClassVar[bool] = False

    @classmethod
    def claims(cls, index: JsonFile) -> bool:
        """Return whether a checkpoint with this model_index.json is of this family."""
        return index.values.get("_class_name") == cls.pipeline

    def __init__(self, index: JsonFile) -> None:
        self.index = index
        self.components = {
            name: kind
            for name, kind in self.classes.items()
            if name not in self.optional or index.values.get(name) not in (None, [None, None])
        }
        for name in self.weighted:
            expected, entry = self.components[name], index.values.get(name)
            named = str(entry[-1]) if isinstance(entry, list) and entry else ""
            if named == _AS_GOOD.get(expected):
                self.components[name] = named
            elif named != expected:
                raise InputError(f"{index.path}: {name}: expected {expected}, got {entry!r}")

    @property
    def weighted(self) -> tuple[str, ...]:
        """The components that have weights."""
        return tuple(name for name in self.components if not name.startswith(("tokenizer", *PROCESSORS)))

    @property
    def transformers(self) -> tuple[str, ...]:
        """The components that denoise, in the order in which they take over."""
        return tuple(name for name in self.components if name.startswith("transformer"))

    @property
    def conditioners(self) -> tuple[str, ...]:
        """The components that turn prompts and images into the transformer's conditioning."""
        return tuple(name for name in self.components if not name.startswith(("transformer", "vae")))

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        """Return diffusers' pipeline of these components: it cleans, tokenizes and encodes prompts and images."""
        import diffusers

        absent = dict.fromkeys(("scheduler", *self.transformers))
        return getattr(diffusers, self.pipeline)(**conditioners, **absent, vae=vae)

    @classmethod
    @abstractmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        """Return what a transformer computes and weighs, from its config.json."""

    @abstractmethod
    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        """Return the bounds that model_index.json and both config.json set. Raises InputError for another model."""

    @abstractmethod
    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        """Return diffusers' transformer as the engine runs it, block by block."""

    @abstractmethod
    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Encode prompts by diffusers' pipeline of tokenizers and text encoders: tensors with a row for each prompt."""

    @abstractmethod
    def conditioning(self, *rows: Tensor) -> Conditioning:
        """Return one prompt's conditioning from its row of each of those tensors, [1, ...], with padding cut off."""

    @abstractmethod
    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        """Lay out the noise schedule as the pipeline does."""

    def encode_images(
        self, pipeline: Any, images: Images, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Encode images to the tensors that `image_conditioning` takes, on the main rank.

        Args:
            pipeline: diffusers' pipeline of the conditioners and the VAE.
            images: of the video's size in pixels.
            latents: [1, C, T, H, W], for their shape.

        Raises:
            InputError: the family takes no images, as `CheckpointInfo.image` says.
        """
        raise InputError(f"image: {self.pipeline} takes none")

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        """Return what images fix in a video of latents [B, C, T, H, W], which give shape, device and dtype.

        `encoded` is what `encode_images` returned, or nothing if there is no image.
        """
        from .base import ImageConditioning

        return ImageConditioning()


PROCESSORS = ("image_processor", "feature_extractor")

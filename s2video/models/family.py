"""What a pipeline's checkpoint is, as far as the engine has to know: its components, its bounds, its conditioning.

One class for each pipeline of diffusers; each model's folder has its own, and `registry` chooses among them. Imports
torch, diffusers and the models only where a method needs them: the command line reads a checkpoint's bounds before it
spends seconds on those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..decoding.kinds import WAN_VAE
from ..errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .base import BlockModel, Conditioning, Given
    from .images import Images

_AS_GOOD = {"CLIPVisionModel": "CLIPVisionModelWithProjection"}  # the same with a layer more, which nobody asks for


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's JSON files say of the requests that it can serve.

    Attributes:
        num_blocks: transformer blocks; of two transformers, of each.
        patch_size: latent frames, rows and columns that make one token.
        max_positions: positions of the rotary embedding, along each of time, height and width; None: any number.
        spatial_factor: pixels to a latent cell, along height and width.
        temporal_factor: frames to a latent frame, after the first.
        latent_channels: channels of the VAE's latents.
        vae_class: diffusers' name of the VAE's class.
        boundary_ratio: where there are two transformers, the part of the training timesteps below which the second
            takes over, 0 … 1; None: there is one.
        time_per_token: whether the timestep is embedded for each token.
        image: whether a first image has to be given.
        last_image: whether a last image has to be given with the first, or may be.
        text_length: tokens of text, padding included, that the transformer counts on; None: any number.
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
    """A component's settings, and the file they are from."""

    path: Path
    values: dict[str, Any]

    def count(self, key: str, default: int) -> int:
        """A whole number > 0; the default is that of diffusers' constructor. Raises InputError for anything else."""
        value = self.values.get(key, default)
        if not is_count(value):
            raise InputError(f"checkpoint file {self.path}: {key}: expected a whole number > 0, came {value!r}")
        return int(value)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Prompts:
    """What the text encoders are asked to read.

    Attributes:
        texts: the prompts.
        max_sequence_length: tokens of an embedding; longer prompts are cut off.
        device: where the encoders are.
        images: the video's, where the family's `text_sees_image`; else None.
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
        classes: the folders that such a checkpoint may have, and the class that loads each; beside these the
            scheduler, of any class.
        optional: those of them that it may lack.
        block_lists: the transformer's lists of blocks, in the order in which they run.
        components: the folders that this one has, with their classes.
        text_sees_image: the text encoder is shown the first image with the prompt.

    Raises:
        InputError: a component that is missing, or of another class.
    """

    pipeline: ClassVar[str]
    classes: ClassVar[Mapping[str, str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    block_lists: ClassVar[tuple[str, ...]]
    text_sees_image: ClassVar[bool] = False

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
                raise InputError(f"{index.path}: {name}: {expected} was expected, came {entry!r}")

    @property
    def weighted(self) -> tuple[str, ...]:
        """The components that have weights."""
        return tuple(name for name in self.components if not name.startswith(("tokenizer", *PROCESSORS)))

    @property
    def transformers(self) -> tuple[str, ...]:
        """The components that denoise, in the order of their turns."""
        return tuple(name for name in self.components if name.startswith("transformer"))

    @property
    def conditioners(self) -> tuple[str, ...]:
        """The components that turn prompts and images into what the transformer is told."""
        return tuple(name for name in self.components if not name.startswith(("transformer", "vae")))

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        """Diffusers' pipeline of these components: it cleans, wraps, tokenizes and encodes prompts and images."""
        import diffusers

        absent = dict.fromkeys(("scheduler", *self.transformers))
        return getattr(diffusers, self.pipeline)(**conditioners, **absent, vae=vae)

    @abstractmethod
    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        """Bounds from model_index.json and both config.json. Raises InputError where the model is of another kind."""

    @abstractmethod
    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel: ...

    @abstractmethod
    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Prompts -> tensors with a row for each, through diffusers' pipeline of tokenizers and text encoders."""

    @abstractmethod
    def conditioning(self, *rows: Tensor) -> Conditioning:
        """One prompt's row of each of those tensors, [1, ...] -> its conditioning, padding cut off."""

    @abstractmethod
    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        """Lay out the noise schedule as the pipeline does."""

    def encode_images(
        self, pipeline: Any, images: Images, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Images -> the tensors that `given` takes, on the main rank.

        Args:
            pipeline: diffusers' pipeline of the conditioners and the VAE.
            images: of the video's size in pixels.
            latents: [1, C, T, H, W], for their shape.

        Raises:
            InputError: where the family takes none, which `CheckpointInfo.image` says.
        """
        raise InputError(f"image: {self.pipeline} takes none")

    def given(self, latents: Tensor, *encoded: Tensor) -> Given:
        """What stands fixed in a video of latents [B, C, T, H, W], which give shape, device and dtype.

        `encoded` is what `encode_images` returned, or nothing where there is no image.
        """
        from .base import Given

        return Given()


PROCESSORS = ("image_processor", "feature_extractor")

"""Facts about a pipeline's checkpoints: components, bounds, conditioning, costs, block lists.

Each diffusers pipeline has one class, in the folder of its model; `registry` lists them. Torch, diffusers and the block
models are imported only inside methods, because they take seconds and the command line reads a checkpoint's bounds
first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from ..decoding.kinds import WAN_VAE
from ..errors import InputError
from ..geometry import FrameGrid, LatentShape, SoundShape
from .costs import TransformerCosts

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..config.sections import SamplingConfig
    from .base import BlockModel, Conditioning, ImageConditioning
    from .control import Control
    from .images import Images

_AS_GOOD = {"CLIPVisionModel": "CLIPVisionModelWithProjection"}  # the same with an additional, unused layer


@dataclass(frozen=True)
class CheckpointInfo:
    """The requests that a checkpoint can serve, from its JSON files.

    Attributes:
        num_blocks: number of blocks of each transformer.
        patch_size: latent frames, rows and columns that make one token.
        max_positions: positions of the rotary embedding along each of time, height and width; None means unlimited.
        spatial_factor: pixels per latent cell, along height and width.
        temporal_factor: frames per latent frame, after the first.
        latent_channels: channels of the VAE's latents.
        vae_class: name of the VAE's class in diffusers.
        boundary_ratio: share of the training timesteps below which the second transformer is active, 0 … 1; None if
            there is only one.
        time_per_token: whether the timestep is embedded for each token.
        image: whether a first image is optional, required or not supported.
        last_image: the same for a last image, in addition to the first.
        text_length: number of text tokens, with padding, that the transformer needs; None means any number.
        takes_lora: whether diffusers loads LoRAs for its pipeline.
        control_layers: number of hints that control gives to the transformer; 0: the checkpoint takes no control.
        sound: the sound that is made with the picture; None: none.
        counts_end: whether its scheduler counts the end of the last step too, so that it takes one step fewer.
        has_uncond: whether there can be an uncond pass; False: guidance is distilled into the model, which has no other
            input for it.
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
    control_layers: int = 0
    sound: SoundShape | None = None
    has_uncond: bool = True
    counts_end: bool = False

    @property
    def encodes_pictures(self) -> bool:
        """Whether the VAE encodes pictures that the user gives, so that it counts for the latents."""
        return self.image != "none" or self.control_layers > 0

    @property
    def frames(self) -> FrameGrid:
        """The numbers of frames that the model can make."""
        if self.sound is not None:
            return self.sound.frames
        return FrameGrid.causal(self.temporal_factor, self.patch_size[0])

    def latent_shape(self, *, num_frames: int, height: int, width: int) -> LatentShape:
        """Return the shape of the picture's latents; height and width are in pixels."""
        return LatentShape(self.frames.latents(num_frames), height // self.spatial_factor, width // self.spatial_factor)

    def num_steps(self, sampling: SamplingConfig) -> int:
        """Return the steps of a run, as far as its settings tell."""
        return sampling.expected_steps - self.counts_end

    def num_tokens(self, shape: LatentShape) -> int:
        """Return the tokens of a video of this shape, with those of its sound."""
        picture = shape.tokens(self.patch_size).num_tokens
        return picture + (0 if self.sound is None else self.sound.num_rows(shape.frames))


@dataclass(frozen=True)
class JsonFile:
    """The settings of a component, and their file."""

    path: Path
    values: dict[str, Any]

    def count(self, key: str, default: int) -> int:
        """Return a whole number > 0; `default` is that of diffusers' constructor. Raises InputError for others."""
        value = self.values.get(key, default)
        if not is_count(value):
            raise InputError(f"{self.path}: {key}: expected a whole number > 0, got {value!r}")
        return int(value)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Prompts:
    """The input of the text encoders.

    Attributes:
        texts: the prompts.
        max_sequence_length: tokens of an embedding; longer prompts are truncated.
        device: the encoders' device.
        images: the video's images if the family's `text_sees_image`, else None.
        is_negative: whether these are prompts of the uncond pass.
    """

    texts: list[str]
    max_sequence_length: int
    device: torch.device
    images: Images | None = None
    is_negative: bool = False


class SecondText(NamedTuple):
    """What a second text encoder reads of a prompt.

    Attributes:
        encoder: its name.
        limit: tokens that it reads, as the pipeline sets it.
        only_quoted: it reads only text in quotes.
    """

    encoder: Literal["CLIP", "ByT5"]
    limit: int
    only_quoted: bool = False


class Family(ABC):
    """One checkpoint of one diffusers pipeline.

    Args:
        index: its model_index.json.

    Attributes:
        pipeline: name of the pipeline's class.
        classes: folders that a checkpoint can have -> the class that loads each. Without the scheduler, which can have
            any class.
        optional: the folders that can be missing.
        block_lists: attributes of the transformer that hold its blocks, in the order in which they run.
        control_lists: those that hold blocks of control, which are never dropped.
        components: folders of this checkpoint -> their classes.
        text_sees_image: whether the text encoder sees the first image together with the prompt.
        takes_float32: whether the transformer takes latents in float32, whatever its own precision.
        second_text: what a second text encoder reads of a prompt; None without one.

    Raises:
        InputError: if a component is missing or has another class.
    """

    pipeline: ClassVar[str]
    classes: ClassVar[Mapping[str, str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    block_lists: ClassVar[tuple[str, ...]]
    control_lists: ClassVar[tuple[str, ...]] = ()
    text_sees_image: ClassVar[bool] = False
    takes_float32: ClassVar[bool] = False
    second_text: ClassVar[SecondText | None] = None

    @classmethod
    def claims(cls, index: JsonFile) -> bool:
        """Return whether a checkpoint with this model_index.json belongs to this family."""
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
            named = str(entry[1]) if isinstance(entry, list) and len(entry) > 1 else ""
            if named == _AS_GOOD.get(expected):
                self.components[name] = named
            elif named != expected:
                raise InputError(f"{index.path}: {name}: expected {expected}, got {entry!r}; choose another checkpoint")

    @property
    def weighted(self) -> tuple[str, ...]:
        """The components that have weights."""
        without = ("tokenizer", "audio_scheduler", *PROCESSORS)
        return tuple(name for name in self.components if not name.startswith(without))

    @property
    def transformers(self) -> tuple[str, ...]:
        """The components that denoise, in the order in which they are used."""
        return tuple(name for name in self.components if name.startswith("transformer"))

    @property
    def conditioners(self) -> tuple[str, ...]:
        """The components that convert prompts and images to the transformer's conditioning."""
        return tuple(name for name in self.components if not name.startswith(("transformer", "vae", "audio_")))

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        """Return a diffusers pipeline of these components, which cleans, tokenizes and encodes prompts and images."""
        import diffusers

        absent = dict.fromkeys(("scheduler", *self.transformers))
        return getattr(diffusers, self.pipeline)(**conditioners, **absent, vae=vae)

    @classmethod
    @abstractmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        """Return the costs of a transformer from its config.json."""

    @abstractmethod
    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        """Return the bounds set by model_index.json and both config.json. Raises InputError if unsupported."""

    @abstractmethod
    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        """Return a diffusers transformer wrapped to run block by block."""

    def block_names(self, transformer: nn.Module) -> list[str]:
        """Return the names of all blocks, of control too, in the order in which they run (`stages.stages_of`)."""
        lists: list[tuple[str, Any]] = [(name, transformer.get_submodule(name)) for name in self.block_lists]
        return [f"{name}.{index}" for name, blocks in lists for index in range(len(blocks))]

    @abstractmethod
    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Encode prompts with a pipeline from `build_pipeline`. Return tensors with one row per prompt."""

    @abstractmethod
    def conditioning(self, *rows: Tensor) -> Conditioning:
        """Return one prompt's conditioning, without padding, from its row [1, ...] of each tensor from `encode`."""

    @abstractmethod
    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        """Set the scheduler's timesteps as the pipeline does."""

    def complete_scheduler(self, scheduler: Any, folder: Path, info: CheckpointInfo) -> Any:
        """Return what denoises with the scheduler of a checkpoint in `folder`, which can have a second one."""
        return scheduler

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, info: CheckpointInfo) -> Tensor:
        """Return one video's noise on the CPU, as its pipeline draws it.

        Args:
            shape: [1, C, T, H, W] of the picture. The sampler's latents have the shape of the result.
        """
        import torch

        return torch.randn(shape, generator=generator)

    def encode_images(
        self, pipeline: Any, images: Images, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Encode images on the main rank to the tensors that `image_conditioning` takes.

        Args:
            pipeline: a pipeline from `build_pipeline`, with conditioners and VAE.
            images: images of the video's size in pixels.
            latents: [1, C, T, H, W]; only the shape is used.

        Raises:
            InputError: if the family takes no images (`CheckpointInfo.image` is "none").
        """
        raise InputError(f"image: expected none for {self.pipeline}, got one; leave it out")

    def encode_control(
        self, pipeline: Any, control: Control, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Encode control on the main rank to the tensors that `image_conditioning` takes; as `encode_images`.

        Args:
            control: frames of the video's size in pixels. It can be empty.
            latents: [1, C, T, H, W], with the frames of references; only the shape is used.

        Raises:
            InputError: if the family takes no control (`CheckpointInfo.control_layers` is 0).
        """
        raise InputError(f"control: expected none for {self.pipeline}, got some; leave it out")

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        """Return the image conditioning for latents [B, C, T, H, W], which give shape, device and dtype.

        `encoded` is the output of `encode_images` or `encode_control`, or empty if there is no image and no control.
        """
        from .base import ImageConditioning

        return ImageConditioning()


PROCESSORS = ("image_processor", "feature_extractor")

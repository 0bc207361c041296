"""Checkpoints of Wan VACE. Imports torch only inside methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import InputError
from ..costs import TransformerCosts
from ..family import CheckpointInfo, JsonFile
from ..stages import stages_of
from ..wan.family import Wan
from .costs import WanVaceCosts

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..base import BlockModel, ImageConditioning
    from ..control import Control
    from ..images import Images


class WanVace(Wan):
    """Text, and optionally a control video, a mask and reference images, to video: Wan 2.1 and 2.2 VACE.

    Or a first image, and a last one, as control that keeps them.

    Control latents are appended to the channels of the noisy latents: the VAE's of the parts that are kept and of those
    that are made, and the mask. References are latent frames of their own, before those of the video.
    """

    pipeline = "WanVACEPipeline"
    classes: ClassVar[Mapping[str, str]] = {
        **Wan.classes,
        "transformer": "WanVACETransformer3DModel",
        "transformer_2": "WanVACETransformer3DModel",
    }
    control_lists = ("vace_blocks",)
    _patch_size: tuple[int, int, int] = (1, 2, 2)

    @classmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        return WanVaceCosts.from_config(config)

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        info, path = super().describe(transformer, vae), transformer.path
        layers = transformer.values.get("vace_layers", list(WanVaceCosts.from_config({}).hints_at))
        is_list = isinstance(layers, list) and all(type(layer) is int for layer in layers)
        if (
            not is_list
            or layers[:1] != [0]
            or any(a >= b for a, b in pairwise(layers))
            or layers[-1] >= info.num_blocks
        ):
            raise InputError(
                f"{path}: vace_layers: expected indices of the {info.num_blocks} blocks, ascending, the first 0, got "
                f"{str(layers)[:80]}; download the checkpoint again, whole"
            )
        latents = 2 * info.latent_channels + info.spatial_factor**2
        if (channels := transformer.count("vace_in_channels", 96)) != latents:
            raise InputError(
                f"{path}: vace_in_channels: expected {latents}, the channels of two latents and a mask of this VAE, "
                f"got {channels}; choose another checkpoint"
            )
        if transformer.values.get("image_dim") is not None:
            raise InputError(
                f"{path}: image_dim: expected null, because {self.pipeline} has no image encoder, got "
                f"{transformer.values['image_dim']!r}; choose another checkpoint"
            )
        self._patch_size = info.patch_size
        return replace(info, control_layers=len(layers), image="optional", last_image="optional")

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from .blocks import WanVaceBlockModel

        return WanVaceBlockModel(transformer, attention_backend=attention_backend)

    def block_names(self, transformer: nn.Module) -> list[str]:
        config: Any = transformer.config
        stages = stages_of(config.num_layers, config.vace_layers)
        return [f"blocks.{block}" if hint is None else f"vace_blocks.{hint}" for block, hint in stages]

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        pipeline = super().build_pipeline(conditioners, vae)
        # the pipeline reads the size of a patch there
        pipeline.transformer = SimpleNamespace(config=SimpleNamespace(patch_size=self._patch_size))
        return pipeline

    def encode_images(
        self, pipeline: Any, images: Images, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return the control latents of frames to fill between images that are kept; as `encode_control`."""
        num_frames = (latents.shape[2] - 1) * pipeline.vae_scale_factor_temporal + 1
        return self.encode_control(pipeline, filling(images, num_frames), latents, device=device)

    def encode_control(
        self, pipeline: Any, control: Control, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return the control latents [1, 2·C + 64, T, H, W]: zero under the references' masks."""
        import torch

        num_references = len(control.references)
        frames, *size = latents.shape[2:]
        height, width = (cells * pipeline.vae_scale_factor_spatial for cells in size)
        video, mask, references = pipeline.preprocess_conditions(
            list(control.video) or None,
            list(control.mask) or None,
            list(control.references) or None,
            batch_size=1,
            height=height,
            width=width,
            num_frames=(frames - num_references - 1) * pipeline.vae_scale_factor_temporal + 1,
            dtype=torch.float32,
            device=device,
        )
        encoded = pipeline.prepare_video_latents(video, mask, references, device=device)
        return (torch.cat((encoded, pipeline.prepare_masks(mask, references)), dim=1),)

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        from ..base import ImageConditioning

        return ImageConditioning(channels=encoded[0] if encoded else None)


def filling(images: Images, num_frames: int) -> Control:
    """Return the control that keeps a first image, and a last one, and has the model make the frames between them."""
    from PIL import Image

    from ..control import Control

    size = images.first.size
    grey, kept, made = Image.new("RGB", size, (128,) * 3), Image.new("L", size, 0), Image.new("L", size, 255)
    ends = 1 if images.last is None else 2
    video = (images.first, *[grey] * (num_frames - ends), *([] if images.last is None else [images.last]))
    mask = (kept, *[made] * (num_frames - ends), *[kept] * (ends - 1))
    return Control(video[:num_frames], mask[:num_frames])

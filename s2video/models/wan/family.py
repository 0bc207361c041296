"""Checkpoints of Wan's pipelines. Imports torch only inside methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...decoding.kinds import WAN_VAE
from ...errors import InputError
from ..costs import TransformerCosts
from ..family import CheckpointInfo, Family, JsonFile, Prompts, is_count
from .costs import WanCosts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..base import BlockModel, Conditioning, ImageConditioning
    from ..images import Images

# In cross-attention with image tokens, diffusers treats the last 512 tokens as text.
_TEXT_LENGTH_WITH_IMAGES = 512


class Wan(Family):
    """Text to video: Wan 2.1, and Wan 2.2 A14B with two transformers."""

    pipeline = "WanPipeline"
    block_lists = ("blocks",)
    classes: ClassVar[Mapping[str, str]] = {
        "tokenizer": "AutoTokenizer",
        "text_encoder": "UMT5EncoderModel",
        "transformer": "WanTransformer3DModel",
        "transformer_2": "WanTransformer3DModel",
        "vae": WAN_VAE,
    }
    optional = frozenset({"transformer_2"})

    @classmethod
    def claims(cls, index: JsonFile) -> bool:
        return super().claims(index) and not index.values.get("expand_timesteps")

    @classmethod
    def costs(cls, config: Mapping[str, Any]) -> TransformerCosts:
        return WanCosts.from_config(config)

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        patch_size = transformer.values.get("patch_size", [1, 2, 2])
        if not isinstance(patch_size, list) or len(patch_size) != 3 or any(not is_count(p) for p in patch_size):
            raise InputError(f"{transformer.path}: patch_size: expected three whole numbers > 0, got {patch_size!r}")
        return CheckpointInfo(
            num_blocks=transformer.count("num_layers", 40),
            patch_size=(patch_size[0], patch_size[1], patch_size[2]),
            max_positions=transformer.count("rope_max_seq_len", 1024),
            spatial_factor=vae.count("scale_factor_spatial", 8),
            temporal_factor=vae.count("scale_factor_temporal", 4),
            latent_channels=vae.count("z_dim", 16),
            vae_class=self.components["vae"],
            boundary_ratio=self._boundary_ratio(),
        )

    def _boundary_ratio(self) -> float | None:
        ratio, second = self.index.values.get("boundary_ratio"), "transformer_2" in self.components
        if isinstance(ratio, float | int) and not isinstance(ratio, bool) and 0 <= ratio <= 1 and second:
            return float(ratio)
        if ratio is None and not second:
            return None
        raise InputError(
            f"{self.index.path}: boundary_ratio: expected "
            + ("a number from 0 to 1 with transformer_2" if second else "null without transformer_2")
            + f", got {ratio!r}; download the whole checkpoint again"
        )

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from .blocks import WanBlockModel

        return WanBlockModel(transformer, attention_backend=attention_backend)

    def encode(self, pipeline: Any, prompts: Prompts) -> tuple[Tensor, ...]:
        """Return text [B, max_sequence_length, D_text], zero after each prompt, because Wan attends to padding."""
        text, _ = pipeline.encode_prompt(
            prompts.texts,
            do_classifier_free_guidance=False,
            max_sequence_length=prompts.max_sequence_length,
            device=prompts.device,
        )
        return (text,)

    def conditioning(self, *rows: Tensor) -> Conditioning:
        from ..base import Conditioning

        return Conditioning(rows[0])

    def set_timesteps(self, scheduler: Any, num_steps: int, device: torch.device) -> None:
        scheduler.set_timesteps(num_steps, device=device)


class WanImageToVideo(Wan):
    """Image to video, or from a first to a last frame: Wan 2.1 I2V and FLF2V, Wan 2.2 A14B.

    A mask and the images' latents are appended to the channels of the noisy latents. Wan 2.1 also puts an image
    encoder's features before the text; its config fixes the number of images.
    """

    pipeline = "WanImageToVideoPipeline"
    classes: ClassVar[Mapping[str, str]] = {
        **Wan.classes,
        "image_encoder": "CLIPVisionModel",
        "image_processor": "CLIPImageProcessor",
    }
    optional = Wan.optional | {"image_encoder", "image_processor"}

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        info = replace(super().describe(transformer, vae), image="required")
        if transformer.values.get("image_dim") is None:
            return replace(info, last_image="optional")
        if not {"image_encoder", "image_processor"} <= self.components.keys():
            raise InputError(
                f"{self.index.path}: expected image_encoder and image_processor, because {transformer.path} has "
                "image_dim, got none; download the whole checkpoint again"
            )
        takes_two = transformer.values.get("pos_embed_seq_len") is not None
        return replace(info, last_image="required" if takes_two else "none", text_length=_TEXT_LENGTH_WITH_IMAGES)

    def encode_images(
        self, pipeline: Any, images: Images, latents: Tensor, *, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return mask and latents [1, 4 + C, T, H, W], and the joined features of all images if there is an encoder."""
        import torch

        _, num_channels, num_frames, *size = latents.shape
        height, width = (cells * pipeline.vae_scale_factor_spatial for cells in size)
        present = [image for image in images if image is not None]
        first, *last = (
            pipeline.video_processor.preprocess(image, height=height, width=width).to(device, torch.float32)
            for image in present
        )
        condition = pipeline.prepare_latents(
            first,
            batch_size=1,
            num_channels_latents=num_channels,
            height=height,
            width=width,
            num_frames=(num_frames - 1) * pipeline.vae_scale_factor_temporal + 1,
            dtype=torch.float32,
            device=device,
            latents=latents,  # so that no noise is drawn
            last_image=last[0] if last else None,
        )[1]
        if "image_encoder" not in self.components:
            return (condition,)
        features = pipeline.encode_image(present, device)
        return condition, features.flatten(0, 1).unsqueeze(0)

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        from ..base import ImageConditioning

        channels, *features = encoded
        return ImageConditioning(channels=channels, features=features[0] if features else None)


class WanTextImageToVideo(WanImageToVideo):
    """Wan 2.2 TI2V 5B: an optional first image, and one timestep per token.

    Its checkpoints name either pipeline and set `expand_timesteps`. The image's latents [1, C, 1, H, W] replace the
    first noisy frame.
    """

    classes: ClassVar[Mapping[str, str]] = {name: kind for name, kind in Wan.classes.items() if name != "transformer_2"}
    optional = frozenset()

    @classmethod
    def claims(cls, index: JsonFile) -> bool:
        named = index.values.get("_class_name") in (Wan.pipeline, WanImageToVideo.pipeline)
        return named and bool(index.values.get("expand_timesteps"))

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        return replace(Wan.describe(self, transformer, vae), image="optional", time_per_token=True)

    def block_model(self, transformer: Any, attention_backend: str | None) -> BlockModel:
        from .blocks import WanBlockModel

        return WanBlockModel(transformer, attention_backend=attention_backend, time_per_token=True)

    def build_pipeline(self, conditioners: Mapping[str, Any], vae: Any) -> Any:
        pipeline = super().build_pipeline(conditioners, vae)
        pipeline.register_to_config(expand_timesteps=True)
        return pipeline

    def image_conditioning(self, latents: Tensor, *encoded: Tensor) -> ImageConditioning:
        from ..base import ImageConditioning

        return ImageConditioning(frames=encoded[0]) if encoded else ImageConditioning()

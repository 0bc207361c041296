"""The checkpoints of Wan's pipelines. Imports torch only where a method needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError
from .family import WAN_VAE, CheckpointInfo, Family, JsonFile, is_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .base import BlockModel, Conditioning
    from .images import Images


class Wan(Family):
    pipeline = "WanPipeline"
    block_lists = ("blocks",)
    classes: ClassVar[Mapping[str, str]] = {
        "tokenizer": "AutoTokenizer",
        "text_encoder": "UMT5EncoderModel",
        "transformer": "WanTransformer3DModel",
        "vae": WAN_VAE,
    }

    def describe(self, transformer: JsonFile, vae: JsonFile) -> CheckpointInfo:
        values = self.index.values
        if values.get("transformer_2") not in (None, [None, None]) or values.get("expand_timesteps"):
            raise InputError(
                f"{self.index.path.parent}: is a Wan 2.2 checkpoint, which is not supported: choose a Wan 2.1 one"
            )
        patch_size = transformer.values.get("patch_size", [1, 2, 2])
        if not isinstance(patch_size, list) or len(patch_size) != 3 or any(not is_count(p) for p in patch_size):
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
        self,
        pipeline: Any,
        prompts: list[str],
        *,
        images: Images | None,
        is_negative: bool,
        max_sequence_length: int,
        device: torch.device,
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

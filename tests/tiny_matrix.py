"""The rows of the matrix of the plugin: pipelines of diffusers in miniature, and how `enable` guides each of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import tiny_image_models as images
import tiny_models as first
import tiny_more_models as more
import tiny_pipelines
from tiny_models import AUDIO_TOO, BOTH, FLUX_BLOCKS, HIDDEN, HUNYUAN_BLOCKS, TEXT_FIRST, WAN_BLOCKS


@dataclass(frozen=True, eq=False)
class Miniature:
    """A row of the matrix.

    Attributes:
        build: makes the pipeline and the arguments of its call.
        returns: lists of blocks, in running order -> the arguments that such a block returns, in order.
        found: how `enable` finds cond: by the "name" that the pipeline gives to the call, as one of the "halves" of a
            call that it names, by the prompt's "embeddings", or because "every" call is cond.
        half: the part of the first call's batch that is cond, of two, or None for all of it.
        is_moved: what S² adds is subtracted from each prediction, and not where the scheduler steps.
        plain: arguments of a call without the pipeline's own guidance; None if it has none.
        steps: `num_inference_steps` of a run of one step, or of as few as possible; None if the call has none.
        num_steps: how many steps that run takes.
    """

    build: Callable[[], tuple[Any, dict[str, Any]]]
    returns: dict[str, tuple[str, ...]]
    found: str = "name"
    half: int | None = None
    is_moved: bool = False
    plain: dict[str, Any] | None = field(default_factory=lambda: {"guidance_scale": 1.0})
    steps: int | None = 1
    num_steps: int = 1

    @cache  # noqa: B019  (rows live as long as the tests)
    def built(self) -> tuple[Any, dict[str, Any]]:
        pipe, arguments = self.build()
        pipe.set_progress_bar_config(disable=True)
        return pipe, arguments


_LTX2_PLAIN = {f"{kind}{scale}_scale": 1.0 for kind in ("", "audio_") for scale in ("guidance", "modality")}
_LTX2_PLAIN |= {"stg_scale": 0.0, "audio_stg_scale": 0.0}
_TRUE_CFG = {"plain": {"true_cfg_scale": 1.0}}
_MOVED = {"is_moved": True}
VISUAL_BLOCKS = {"visual_transformer_blocks": ("visual_embed",)}
FLUX2_BLOCKS = {"transformer_blocks": TEXT_FIRST, "single_transformer_blocks": HIDDEN}
_LTX2 = {"returns": {"transformer_blocks": AUDIO_TOO}, "found": "halves", "half": 1, "plain": _LTX2_PLAIN, **_MOVED}

MINIATURES = {
    "WanPipeline": Miniature(first.wan, WAN_BLOCKS),
    "WanImageToVideoPipeline": Miniature(first.wan_image_to_video, WAN_BLOCKS),
    "WanVACEPipeline": Miniature(first.wan_vace, WAN_BLOCKS),
    "WanAnimatePipeline": Miniature(first.wan_animate, WAN_BLOCKS),
    "WanVideoToVideoPipeline": Miniature(first.wan_video_to_video, WAN_BLOCKS, "embeddings"),
    "HunyuanVideoPipeline": Miniature(tiny_pipelines.hunyuan_video, HUNYUAN_BLOCKS),
    "HunyuanVideoImageToVideoPipeline": Miniature(
        first.hunyuan_video_image_to_video, HUNYUAN_BLOCKS, "embeddings", **_MOVED, **_TRUE_CFG
    ),
    "HunyuanSkyreelsImageToVideoPipeline": Miniature(first.hunyuan_skyreels, HUNYUAN_BLOCKS, "embeddings", **_TRUE_CFG),
    "HunyuanVideo15Pipeline": Miniature(tiny_pipelines.build_hunyuan_video_15, {"transformer_blocks": BOTH}),
    "HunyuanVideo15ImageToVideoPipeline": Miniature(
        partial(tiny_pipelines.build_hunyuan_video_15, "i2v"), {"transformer_blocks": BOTH}
    ),
    "SkyReelsV2Pipeline": Miniature(first.skyreels_v2, WAN_BLOCKS),
    "SkyReelsV2ImageToVideoPipeline": Miniature(first.skyreels_v2_image_to_video, WAN_BLOCKS),
    "SkyReelsV2DiffusionForcingPipeline": Miniature(first.skyreels_v2_diffusion_forcing, WAN_BLOCKS, **_MOVED),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": Miniature(
        first.skyreels_v2_diffusion_forcing_image_to_video, WAN_BLOCKS, **_MOVED
    ),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Miniature(
        first.skyreels_v2_diffusion_forcing_video_to_video, WAN_BLOCKS, **_MOVED
    ),
    "LTX2Pipeline": Miniature(first.ltx2, **_LTX2),
    "LTX2ImageToVideoPipeline": Miniature(first.ltx2_image_to_video, **_LTX2),
    "MiniMaxH3ModularPipeline": Miniature(
        first.minimax_h3, {"transformer_blocks": HIDDEN}, "every", **_MOVED, plain=None, steps=2
    ),
    "FluxPipeline": Miniature(tiny_pipelines.flux, FLUX_BLOCKS, **_TRUE_CFG),
    "StableDiffusion3Pipeline": Miniature(
        tiny_pipelines.stable_diffusion_3, {"transformer_blocks": TEXT_FIRST}, "embeddings", 1
    ),
    "HunyuanVideoFramepackPipeline": Miniature(more.framepack, HUNYUAN_BLOCKS, "embeddings", **_TRUE_CFG),
    "HeliosPipeline": Miniature(more.helios, WAN_BLOCKS),
    "HeliosPyramidPipeline": Miniature(more.helios_pyramid, WAN_BLOCKS, steps=None, num_steps=3),
    "ChronoEditPipeline": Miniature(more.chronoedit, WAN_BLOCKS, "embeddings"),
    "CogVideoXPipeline": Miniature(more.cogvideox, {"transformer_blocks": BOTH}, "halves", 1),
    "CogVideoXImageToVideoPipeline": Miniature(
        more.cogvideox_image_to_video, {"transformer_blocks": BOTH}, "halves", 1
    ),
    "MochiPipeline": Miniature(more.mochi, {"transformer_blocks": BOTH}, "halves", 1, steps=2, num_steps=2),
    "Kandinsky5T2VPipeline": Miniature(more.kandinsky5, VISUAL_BLOCKS, "embeddings"),
    "Kandinsky5I2VPipeline": Miniature(more.kandinsky5_image_to_video, VISUAL_BLOCKS, "embeddings", **_MOVED),
    "Kandinsky6TI2VAPipeline": Miniature(more.kandinsky6, {"visual_transformer_blocks": ("vis", "aud")}, **_MOVED),
    "LTXPipeline": Miniature(more.ltx, {"transformer_blocks": HIDDEN}, "halves", 1),
    "LTXImageToVideoPipeline": Miniature(
        more.ltx_image_to_video, {"transformer_blocks": HIDDEN}, "halves", 1, **_MOVED
    ),
    "AllegroPipeline": Miniature(more.allegro, {"transformer_blocks": HIDDEN}, "embeddings", 1),
    "SanaVideoPipeline": Miniature(more.sana_video, {"transformer_blocks": HIDDEN}, "embeddings", 1),
    "SanaImageToVideoPipeline": Miniature(
        more.sana_image_to_video, {"transformer_blocks": HIDDEN}, "embeddings", 1, **_MOVED
    ),
    "Cosmos2_5_PredictBasePipeline": Miniature(
        more.cosmos_predict, {"transformer_blocks": HIDDEN}, "embeddings", **_MOVED, plain={"guidance_scale": 0.0}
    ),
    "MotifVideoPipeline": Miniature(more.motif_video, HUNYUAN_BLOCKS),
    "Flux2Pipeline": Miniature(images.flux2, FLUX2_BLOCKS, "embeddings", **_MOVED, plain=None),
    "Flux2KleinPipeline": Miniature(images.flux2_klein, FLUX2_BLOCKS, **_MOVED),
    "QwenImagePipeline": Miniature(images.qwen_image, {"transformer_blocks": TEXT_FIRST}),
    "ZImagePipeline": Miniature(
        images.z_image, {"layers": ("x",)}, "embeddings", 0, **_MOVED, plain={"guidance_scale": 0.0}
    ),
    "ChromaPipeline": Miniature(images.chroma, FLUX2_BLOCKS, "embeddings"),
}

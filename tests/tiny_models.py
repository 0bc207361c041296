"""Pipelines of diffusers in miniature, for the matrix of the plugin: random weights, embeddings in place of encoders.

Prompt and negative prompt differ in length where a pipeline allows it. Models with two kinds of block have both.
"""

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny import build_scheduler, build_vae
from torch import Tensor, nn

TEXT, POOLED, IMAGE = 16, 8, 12  # widths of embeddings
SIZE = {"height": 32, "width": 48}
NUM_BLOCKS = 6
ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 12}
HIDDEN, BOTH = ("hidden_states",), ("hidden_states", "encoder_hidden_states")
TEXT_FIRST = ("encoder_hidden_states", "hidden_states")


def pipeline(name: str, **components: Any) -> Any:
    """Return a pipeline with these components; the others are None."""
    kind = getattr(diffusers, name)
    names, optional = kind._get_signature_keys(kind)
    return kind(**{**dict.fromkeys(set(names) - set(optional)), **components})


def model(name: str, **settings: Any) -> Any:
    torch.manual_seed(1)
    made = getattr(diffusers, name)(**settings).eval().requires_grad_(False)
    for parameter in made.parameters():  # some tables and gates start at zero, and would hide what a block does
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def texts(width: int = TEXT, lengths: tuple[int, int] = (7, 7), **more: tuple[int, ...]) -> dict[str, Tensor]:
    """Embeddings of a prompt and of a negative prompt, and others that have both forms."""
    made = {}
    for seed, (prefix, length) in enumerate(zip(("", "negative_"), lengths, strict=True)):
        made[f"{prefix}prompt_embeds"] = random(1, length, width, seed=seed)
        made |= {f"{prefix}{name}": random(*shape, seed=seed) for name, shape in more.items()}
    return made


def masks(*lengths: int, dtype: torch.dtype = torch.bool) -> dict[str, Tensor]:
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    return {name: torch.ones(1, length, dtype=dtype) for name, length in zip(names, lengths, strict=False)}


def image(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE["height"], SIZE["width"], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def video(frames: int = 5) -> list[Image.Image]:
    return [image(seed) for seed in range(frames)]


# Wan and its descendants

WAN = {**ATTENTION, "text_dim": TEXT, "freq_dim": 16, "ffn_dim": 32, "num_layers": NUM_BLOCKS, "rope_max_seq_len": 64}
WAN_BLOCKS = {"blocks": HIDDEN}


def wan() -> tuple[Any, dict[str, Any]]:
    pipe = pipeline(
        "WanPipeline", transformer=model("WanTransformer3DModel", **WAN), vae=build_vae(), scheduler=build_scheduler()
    )
    return pipe, {**texts(), **SIZE, "num_frames": 5, "guidance_scale": 4.0}


def wan_image_to_video() -> tuple[Any, dict[str, Any]]:
    transformer = model("WanTransformer3DModel", **WAN, in_channels=36, out_channels=16)
    pipe = pipeline("WanImageToVideoPipeline", transformer=transformer, vae=build_vae(), scheduler=build_scheduler())
    return pipe, {**texts(), **SIZE, "num_frames": 5, "image": image(), "guidance_scale": 4.0}


def wan_vace() -> tuple[Any, dict[str, Any]]:
    transformer = model("WanVACETransformer3DModel", **WAN, vace_layers=[0, 2, 4], vace_in_channels=96)
    pipe = pipeline("WanVACEPipeline", transformer=transformer, vae=build_vae(), scheduler=build_scheduler())
    return pipe, {**texts(), **SIZE, "num_frames": 5, "video": video(), "guidance_scale": 4.0}


def wan_animate() -> tuple[Any, dict[str, Any]]:
    motion = {"motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16}
    transformer = model(
        "WanAnimateTransformer3DModel",
        **WAN,
        **motion,
        image_dim=IMAGE,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    pipe = pipeline("WanAnimatePipeline", transformer=transformer, vae=build_vae(), scheduler=build_scheduler())
    pipe.encode_image = lambda *_, **__: random(1, 5, IMAGE)
    faces = [Image.fromarray(np.full((16, 16, 3), 40 * n, dtype=np.uint8)) for n in range(5)]
    return pipe, {
        **texts(lengths=(512, 512)),  # its cross-attention counts on this number
        **SIZE,
        "image": image(),
        "pose_video": video(),
        "face_video": faces,
        "segment_frame_length": 5,
        "guidance_scale": 4.0,
    }


def wan_video_to_video() -> tuple[Any, dict[str, Any]]:
    transformer = model("WanTransformer3DModel", **WAN)
    pipe = pipeline("WanVideoToVideoPipeline", transformer=transformer, vae=build_vae(), scheduler=build_scheduler())
    return pipe, {**texts(), **SIZE, "video": video(), "strength": 1.0, "guidance_scale": 4.0}


def skyreels_v2() -> tuple[Any, dict[str, Any]]:
    return _skyreels("SkyReelsV2Pipeline", num_frames=5)


def skyreels_v2_image_to_video() -> tuple[Any, dict[str, Any]]:
    sees = {"in_channels": 36, "out_channels": 16, "image_dim": IMAGE, "added_kv_proj_dim": 24}
    more = {"lengths": (512, 512), "num_frames": 5, "image": image()}
    pipe, arguments = _skyreels("SkyReelsV2ImageToVideoPipeline", sees, **more)
    pipe.encode_image = lambda *_, **__: random(1, 257, IMAGE)
    return pipe, arguments


def skyreels_v2_diffusion_forcing() -> tuple[Any, dict[str, Any]]:
    return _skyreels("SkyReelsV2DiffusionForcingPipeline", {"inject_sample_info": True}, **_FORCING)


def skyreels_v2_diffusion_forcing_image_to_video() -> tuple[Any, dict[str, Any]]:
    return _skyreels("SkyReelsV2DiffusionForcingImageToVideoPipeline", image=image(), **_FORCING)


def skyreels_v2_diffusion_forcing_video_to_video() -> tuple[Any, dict[str, Any]]:
    more = {**_FORCING, "num_frames": 9, "base_num_frames": 9, "overlap_history": 5}
    return _skyreels("SkyReelsV2DiffusionForcingVideoToVideoPipeline", video=video(), **more)


_FORCING = {"prompt": None, "num_frames": 9, "base_num_frames": 9}


def _skyreels(
    name: str, settings: dict[str, Any] | None = None, lengths: tuple[int, int] = (7, 7), **more: Any
) -> tuple[Any, dict[str, Any]]:
    transformer = model("SkyReelsV2Transformer3DModel", **WAN, **(settings or {}))
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    pipe = pipeline(name, transformer=transformer, vae=build_vae(), scheduler=scheduler)
    return pipe, {**texts(lengths=lengths), **SIZE, "guidance_scale": 4.0, **more}


# HunyuanVideo

HUNYUAN = {**ATTENTION, "num_layers": 2, "num_single_layers": 4, "num_refiner_layers": 1, "rope_axes_dim": (4, 4, 4)}
HUNYUAN |= {"text_embed_dim": TEXT, "pooled_projection_dim": POOLED, "mlp_ratio": 2.0}
HUNYUAN_BLOCKS = {"transformer_blocks": BOTH, "single_transformer_blocks": BOTH}


def hunyuan_video_image_to_video() -> tuple[Any, dict[str, Any]]:
    return _hunyuan("HunyuanVideoImageToVideoPipeline", image_condition_type="token_replace")


def hunyuan_skyreels() -> tuple[Any, dict[str, Any]]:
    return _hunyuan("HunyuanSkyreelsImageToVideoPipeline", in_channels=32)


def _hunyuan(name: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    transformer = model(
        "HunyuanVideoTransformer3DModel", **HUNYUAN, guidance_embeds=False, **{"out_channels": 16, **settings}
    )
    vae = model("AutoencoderKLHunyuanVideo", block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4)
    pipe = pipeline(name, transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0))
    text = texts(lengths=(7, 5), pooled_prompt_embeds=(1, POOLED))
    return pipe, {**text, **masks(7, 5), **SIZE, "image": image(), "num_frames": 9, "true_cfg_scale": 4.0}


FLUX_BLOCKS = {"transformer_blocks": TEXT_FIRST, "single_transformer_blocks": TEXT_FIRST}


# LTX-2 and MiniMax-H3, which predict sound, too

AUDIO_TOO = ("hidden_states", "audio_hidden_states")


def ltx2() -> tuple[Any, dict[str, Any]]:
    return _ltx2("LTX2Pipeline")


def ltx2_image_to_video() -> tuple[Any, dict[str, Any]]:
    return _ltx2("LTX2ImageToVideoPipeline", image=image())


def _ltx2(name: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    rope = {"rope_double_precision": False, "rope_type": "split"}
    sound = {"audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2}
    transformer = model(
        "LTX2VideoTransformer3DModel",
        **{"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8},
        **{"cross_attention_dim": 16, "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8},
        **{"num_layers": NUM_BLOCKS, "caption_channels": TEXT, **sound, **rope},
    )
    parts = {"num_attention_heads": 4, "attention_head_dim": 4, "num_layers": 1, "num_learnable_registers": None}
    names = {f"{kind}_connector_{part}": value for kind in ("video", "audio") for part, value in parts.items()}
    connectors = diffusers.pipelines.ltx2.LTX2TextConnectors(
        caption_channels=TEXT, text_proj_in_factor=2, connector_rope_base_seq_len=32, **names, **rope
    )
    vae = model(
        "AutoencoderKLLTX2Video",
        **{"latent_channels": 4, "block_out_channels": (8,), "decoder_block_out_channels": (8,)},
        **{"layers_per_block": (1,), "decoder_layers_per_block": (1, 1), "downsample_type": ("spatial",)},
        **{"spatio_temporal_scaling": (True,), "decoder_spatio_temporal_scaling": (True,), "patch_size": 1},
        **{"decoder_inject_noise": (False, False), "upsample_residual": (False,), "upsample_factor": (1,)},
    )
    audio_vae = model(
        "AutoencoderKLLTX2Audio",
        **{"base_channels": 4, "ch_mult": (1,), "num_res_blocks": 1, "in_channels": 2, "resolution": 32},
        **{"latent_channels": 2, "mel_bins": 8, "output_channels": 2},
    )
    pipe = pipeline(
        name,
        **{"transformer": transformer, "connectors": connectors.eval(), "vae": vae, "audio_vae": audio_vae},
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    text = {**texts(2 * TEXT), **masks(7, 7, dtype=torch.long)}
    off = {"guidance_rescale": 0.0, "audio_guidance_rescale": 0.0, "max_sequence_length": 7}
    size = {"height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0, "spatio_temporal_guidance_blocks": [3]}
    return pipe, {**text, **size, **off, **more}


def minimax_h3() -> tuple[Any, dict[str, Any]]:
    from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import MiniMaxH3CoreDenoiseStep

    transformer = model(
        "MiniMaxH3Transformer3DModel",
        **{"num_attention_heads": 2, "attention_head_dim": 12, "hidden_size": 24, "num_layers": NUM_BLOCKS},
        **{"num_refiner_layers": 1, "ffn_dim": 32, "text_dim": TEXT, "freq_dim": 16, "time_embed_hidden_dim": 16},
        **{"time_embed_dim": 16, "rope_freq_dim": 2},
    )
    pipe = MiniMaxH3CoreDenoiseStep().init_pipeline()
    schedulers = {f"{kind}scheduler": diffusers.MiniMaxH3Scheduler(shift=3.0) for kind in ("", "audio_")}
    pipe.update_components(transformer=transformer, **schedulers)
    text = {"prompt_embeds": random(1, 7, TEXT), "text_token_tags": torch.ones(7, dtype=torch.long)}
    return pipe, {**text, "height": 32, "width": 32, "num_frames": 124, "output": ["latents", "audio_latents"]}

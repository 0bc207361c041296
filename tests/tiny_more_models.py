"""More video pipelines of diffusers in miniature: from Wan and HunyuanVideo, and of other models."""

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import build_scheduler, build_vae
from tiny_models import (
    ATTENTION,
    HUNYUAN,
    IMAGE,
    NUM_BLOCKS,
    POOLED,
    SIZE,
    TEXT,
    WAN,
    image,
    masks,
    model,
    pipeline,
    random,
    texts,
)

Built = tuple[Any, dict[str, Any]]


def built(name: str, arguments: dict[str, Any], **components: Any) -> Built:
    components.setdefault("scheduler", FlowMatchEulerDiscreteScheduler())
    return pipeline(name, **components), arguments


def hunyuan_vae() -> Any:
    return model("AutoencoderKLHunyuanVideo", block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4)


# from Wan and HunyuanVideo


def framepack() -> Built:
    transformer = model(
        "HunyuanVideoFramepackTransformer3DModel",
        **{**HUNYUAN, "has_image_proj": True, "image_proj_dim": IMAGE, "has_clean_x_embedder": True},
    )
    text = texts(lengths=(7, 5), pooled_prompt_embeds=(1, POOLED))
    size = {"num_frames": 9, "latent_window_size": 3, "image": image(), "true_cfg_scale": 4.0}
    pipe, arguments = built(
        "HunyuanVideoFramepackPipeline",
        {**text, **masks(7, 5), **SIZE, **size},
        **{"transformer": transformer, "vae": hunyuan_vae()},
    )
    pipe.encode_image = lambda *_, **__: random(1, 4, IMAGE)
    return pipe, arguments


def helios() -> Built:
    return _helios("HeliosPipeline", stages=1, stage_range=[0, 1])


def helios_pyramid() -> Built:
    pipe, arguments = _helios("HeliosPyramidPipeline", gamma=0.3)
    return pipe, {**arguments, "height": 64, "width": 64, "pyramid_num_inference_steps_list": [1, 1, 1]}


def _helios(name: str, **settings: Any) -> Built:
    wan = {key: value for key, value in WAN.items() if key != "rope_max_seq_len"}
    transformer = model("HeliosTransformer3DModel", **wan, rope_dim=(4, 4, 4))
    return built(
        name,
        {**texts(), **SIZE, "num_frames": 9, "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1]},
        **{"transformer": transformer, "vae": build_vae(), "scheduler": diffusers.HeliosScheduler(**settings)},
    )


def chronoedit() -> Built:
    transformer = model(
        "ChronoEditTransformer3DModel", **WAN, in_channels=36, out_channels=16, image_dim=IMAGE, added_kv_proj_dim=24
    )
    pipe, arguments = built(
        "ChronoEditPipeline",
        {**texts(lengths=(512, 512)), **SIZE, "num_frames": 5, "image": image(), "guidance_scale": 4.0},
        **{"transformer": transformer, "vae": build_vae(), "scheduler": build_scheduler()},
    )
    pipe.encode_image = lambda *_, **__: random(1, 257, IMAGE)
    return pipe, arguments


# CogVideoX, Mochi, Kandinsky


def cogvideox() -> Built:
    return _cogvideox("CogVideoXPipeline")


def cogvideox_image_to_video() -> Built:
    return _cogvideox("CogVideoXImageToVideoPipeline", 8, image=image())


def _cogvideox(name: str, channels: int = 4, **more: Any) -> Built:
    transformer = model(
        "CogVideoXTransformer3DModel",
        **{"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": NUM_BLOCKS, "time_embed_dim": 4},
        **{
            "in_channels": channels,
            "out_channels": 4,
            "text_embed_dim": TEXT,
            "sample_height": 4,
            "sample_width": 6,
            "sample_frames": 9,
            "max_text_seq_length": 7,
        },
    )
    vae = model(
        "AutoencoderKLCogVideoX",
        **{"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
        **{f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * 4 for way in ("down", "up")},
    )
    arguments = {**texts(), **SIZE, "num_frames": 9, "guidance_scale": 4.0, "max_sequence_length": 7, **more}
    return built(name, arguments, transformer=transformer, vae=vae, scheduler=diffusers.CogVideoXDDIMScheduler())


def mochi() -> Built:
    transformer = model(
        "MochiTransformer3DModel",
        **{**ATTENTION, "num_layers": NUM_BLOCKS, "pooled_projection_dim": 16, "text_embed_dim": TEXT},
        **{"time_embed_dim": 4, "max_sequence_length": 7},
    )
    arguments = {**texts(), **masks(7, 7), "height": 32, "width": 48, "num_frames": 7, "guidance_scale": 4.0}
    return built("MochiPipeline", arguments, transformer=transformer)


def kandinsky5() -> Built:
    return _kandinsky5("Kandinsky5T2VPipeline")


def kandinsky5_image_to_video() -> Built:
    return _kandinsky5("Kandinsky5I2VPipeline", image=image(), num_frames=21)


def _kandinsky5(name: str, **more: Any) -> Built:
    width = {"model_dim": 24, "ff_dim": 32, "time_dim": 16, "axes_dims": (4, 4, 4)}
    transformer = model(
        "Kandinsky5Transformer3DModel",
        **{"in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": TEXT, "in_text_dim2": POOLED},
        **{"num_text_blocks": 1, "num_visual_blocks": NUM_BLOCKS, "visual_cond": True, **width},
    )
    text = {}
    for prefix, length in (("", 7), ("negative_", 5)):
        text[f"{prefix}prompt_embeds_qwen"] = random(1, length, TEXT, seed=length)
        text[f"{prefix}prompt_embeds_clip"] = random(1, POOLED, seed=length)
        text[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, length], dtype=torch.int32)
    return built(
        name,
        {**text, **SIZE, "num_frames": 5, "guidance_scale": 4.0, **more},
        transformer=transformer,
        vae=hunyuan_vae(),
    )


class Sound:
    """In place of the sound's VAE and vocoder: latents are not decoded."""

    config = SimpleNamespace(sample_rate=32)
    latent_hop_length = 2


def kandinsky6() -> Built:
    width = {"model_dim": 24, "ff_dim": 32, "time_dim": 16, "axes_dims": (4, 4, 4)}
    transformer = model(
        "Kandinsky6Transformer3DModel",
        **{"in_text_dim": TEXT, "in_text_dim2": POOLED, "num_text_blocks": 1, "num_visual_blocks": NUM_BLOCKS, **width},
        visual_token_type_num_embeddings=2,
    )
    text = texts(lengths=(7, 7), pooled_prompt_embeds=(1, POOLED))
    return built(
        "Kandinsky6TI2VAPipeline",
        {**text, **SIZE, "num_frames": 5, "guidance_scale": 4.0, "image": image()},
        **{"transformer": transformer, "vae": hunyuan_vae(), "audio_vae": Sound(), "vocoder": Sound()},
    )


# LTX-Video, Allegro, SANA-Video, Cosmos, Motif-Video


def ltx() -> Built:
    return _ltx("LTXPipeline")


def ltx_image_to_video() -> Built:
    return _ltx("LTXImageToVideoPipeline", image=image())


def _ltx(name: str, **more: Any) -> Built:
    transformer = model(
        "LTXVideoTransformer3DModel",
        **{**ATTENTION, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 24, "num_layers": NUM_BLOCKS},
        caption_channels=TEXT,
    )
    vae = model(
        "AutoencoderKLLTXVideo",
        **{
            "latent_channels": 8,
            "patch_size": 1,
            "decoder_inject_noise": (False,) * 5,
            "upsample_residual": (False,) * 4,
        },
        **{f"{part}block_out_channels": (8,) * 4 for part in ("", "decoder_")},
        **{f"{part}layers_per_block": (1,) * 5 for part in ("", "decoder_")},
        **{f"{part}spatio_temporal_scaling": (True, True, False, False) for part in ("", "decoder_")},
        upsample_factor=(1,) * 4,
    )
    text = {**texts(), **masks(7, 7)}
    return built(name, {**text, "height": 32, "width": 32, "num_frames": 9, **more}, transformer=transformer, vae=vae)


def allegro() -> Built:
    transformer = model(
        "AllegroTransformer3DModel",
        **{**ATTENTION, "num_layers": NUM_BLOCKS, "cross_attention_dim": 24, "caption_channels": TEXT},
        **{"sample_height": 4, "sample_width": 6, "sample_frames": 2},
    )
    vae = model(
        "AutoencoderKLAllegro",
        **{"block_out_channels": (8,) * 4, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2},
        **{f"{way}_block_types": (f"Allegro{way.title()}Block3D",) * 4 for way in ("down", "up")},
    )
    arguments = {
        **texts(),
        **masks(7, 7),
        **SIZE,
        "num_frames": 5,
        "guidance_scale": 4.0,
        "clean_caption": False,
        "negative_prompt": None,
    }
    return built(
        "AllegroPipeline",
        arguments,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
    )


def sana_video() -> Built:
    return _sana("SanaVideoPipeline")


def sana_image_to_video() -> Built:
    return _sana("SanaImageToVideoPipeline", image=image())


def _sana(name: str, **more: Any) -> Built:
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24}
    transformer = model(
        "SanaVideoTransformer3DModel",
        **{**ATTENTION, "num_layers": NUM_BLOCKS, "caption_channels": TEXT, "sample_size": 8, "rope_max_seq_len": 32},
        **cross,
    )
    arguments = {**texts(), **masks(7, 7), "height": 32, "width": 32, "frames": 5, "use_resolution_binning": False}
    arguments |= {"negative_prompt": None, **more}
    return built(name, arguments, transformer=transformer, vae=build_vae())


class Checked:
    """In place of the safety checker, which is a package of its own."""

    def to(self, *_: Any) -> "Checked":
        return self

    def check_text_safety(self, _: str) -> bool:
        return True


def cosmos_predict() -> Built:
    transformer = model(
        "CosmosTransformer3DModel",
        **{**ATTENTION, "in_channels": 17, "num_layers": NUM_BLOCKS, "mlp_ratio": 2.0, "text_embed_dim": TEXT},
        **{"adaln_lora_dim": 4, "max_size": (4, 16, 16), "extra_pos_embed_type": None},
        concat_padding_mask=False,  # needs torchvision
    )
    vae = build_vae()
    return built(
        "Cosmos2_5_PredictBasePipeline",
        {
            **texts(),
            **SIZE,
            "num_frames": 5,
            "video": 255 * random(1, 3, 5, 32, 48).sigmoid(),
            "num_latent_conditional_frames": 1,
            "guidance_scale": 3.0,
        },
        **{"transformer": transformer, "vae": vae, "scheduler": build_scheduler(), "safety_checker": Checked()},
    )


def motif_video() -> Built:
    transformer = model(
        "MotifVideoTransformer3DModel",
        **{**ATTENTION, "num_layers": 2, "num_single_layers": 4, "num_decoder_layers": 2, "mlp_ratio": 2.0},
        **{"text_embed_dim": TEXT, "rope_axes_dim": (4, 4, 4)},
    )
    arguments = {**texts(), **masks(7, 7), **SIZE, "num_frames": 5}
    guider = diffusers.ClassifierFreeGuidance(4.0)
    return built("MotifVideoPipeline", arguments, transformer=transformer, vae=build_vae(), guider=guider)

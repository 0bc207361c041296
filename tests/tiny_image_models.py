"""Image pipelines of diffusers in miniature."""

import torch
from tiny_models import NUM_BLOCKS, TEXT, image, masks, model, random, texts
from tiny_more_models import Built, built
from tiny_pipelines import image_vae

PIXELS = {"height": 64, "width": 48}


def flux2() -> Built:
    return _flux2("Flux2Pipeline", guidance_embeds=True)


def flux2_klein() -> Built:
    return _flux2("Flux2KleinPipeline", guidance_embeds=False, negative=True)


def _flux2(name: str, *, guidance_embeds: bool, negative: bool = False) -> Built:
    transformer = model(
        "Flux2Transformer2DModel",
        **{"in_channels": 16, "num_layers": 3, "num_single_layers": 3, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": TEXT, "timestep_guidance_channels": 16},
        **{"axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": guidance_embeds},
    )
    vae = model(
        "AutoencoderKLFlux2",
        **{"block_out_channels": (4,) * 4, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 1},
        **{"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
    )
    text = texts()
    if not negative:
        del text["negative_prompt_embeds"]
    return built(name, {**text, **PIXELS, "image": image().resize((64, 64))}, transformer=transformer, vae=vae)


def qwen_image() -> Built:
    transformer = model(
        "QwenImageTransformer2DModel",
        **{"in_channels": 64, "num_layers": NUM_BLOCKS, "attention_head_dim": 12, "num_attention_heads": 2},
        **{"joint_attention_dim": TEXT, "axes_dims_rope": (4, 4, 4)},
    )
    vae = model("AutoencoderKLQwenImage", base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    text = texts(lengths=(7, 5))
    text |= {f"{kind}prompt_embeds_mask": torch.ones(1, length) for kind, length in (("", 7), ("negative_", 5))}
    return built("QwenImagePipeline", {**text, **PIXELS, "true_cfg_scale": 4.0}, transformer=transformer, vae=vae)


def z_image() -> Built:
    transformer = model(
        "ZImageTransformer2DModel",
        **{"dim": 24, "n_layers": NUM_BLOCKS, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2},
        **{"cap_feat_dim": TEXT, "axes_dims": [4, 4, 4], "axes_lens": [64, 16, 16]},
    )
    text = {"prompt_embeds": [random(7, TEXT, seed=1)], "negative_prompt_embeds": [random(5, TEXT, seed=2)]}
    return built("ZImagePipeline", {**text, **PIXELS, "guidance_scale": 4.0}, transformer=transformer, vae=image_vae())


def chroma() -> Built:
    transformer = model(
        "ChromaTransformer2DModel",
        **{"num_layers": 3, "num_single_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2},
        **{"joint_attention_dim": TEXT, "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8},
        **{"approximator_hidden_dim": 16, "approximator_layers": 1},
    )
    text = {**texts(), **masks(7, 7, dtype=torch.float32)}
    return built("ChromaPipeline", {**text, **PIXELS, "guidance_scale": 4.0}, transformer=transformer, vae=image_vae())

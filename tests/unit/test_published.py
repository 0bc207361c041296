"""Tests of published models, built on the meta device from the configs in the package.

The transformers' values and names come from diffusers' conversion scripts, not from the weights.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from s2video.config.run import read_config
from s2video.models.checkpoint import ASSETS, Checkpoint
from s2video.models.costs import all_parameters
from s2video.models.limits import check_request
from s2video.models.registry import read_costs

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = ASSETS / "published"
OF_TEXT = {
    "patch_embedding.weight": (5120, 16, 1, 2, 2),
    "condition_embedder.time_proj.weight": (30720, 5120),
    "blocks.39.attn2.to_k.weight": (5120, 5120),
}
OF_5B = {
    "patch_embedding.weight": (3072, 48, 1, 2, 2),
    "condition_embedder.time_proj.weight": (18432, 3072),
    "blocks.29.ffn.net.0.proj.weight": (14336, 3072),
    "proj_out.weight": (192, 3072),
}
OF_IMAGES = {"patch_embedding.weight": (5120, 36, 1, 2, 2), "proj_out.weight": (64, 5120)}
OF_FEATURES = OF_IMAGES | {
    "condition_embedder.image_embedder.norm1.weight": (1280,),
    "condition_embedder.image_embedder.ff.net.2.weight": (5120, 1280),
    "blocks.39.attn2.add_k_proj.weight": (5120, 5120),
    "blocks.39.attn2.add_v_proj.bias": (5120,),
    "blocks.0.attn2.norm_added_k.weight": (5120,),
}
OF_BOTH = OF_FEATURES | {"condition_embedder.image_embedder.pos_embed": (1, 514, 1280)}
OF_CONTROL = OF_TEXT | {
    "vace_patch_embedding.weight": (5120, 96, 1, 2, 2),
    "vace_blocks.0.proj_in.weight": (5120, 5120),
    "vace_blocks.7.proj_out.weight": (5120, 5120),
}
OF_HUNYUAN = {
    "x_embedder.proj.weight": (3072, 16, 1, 2, 2),
    "context_embedder.token_refiner.refiner_blocks.1.norm_out.linear.weight": (6144, 3072),
    "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
    "transformer_blocks.19.norm1.linear.weight": (18432, 3072),
    "transformer_blocks.19.norm1_context.linear.weight": (18432, 3072),
    "transformer_blocks.19.attn.norm_added_q.weight": (128,),
    "single_transformer_blocks.39.norm.linear.weight": (9216, 3072),
    "single_transformer_blocks.39.proj_mlp.weight": (12288, 3072),
    "proj_out.weight": (64, 3072),
}
OF_DUAL_BLOCKS = {
    "x_embedder.proj.weight": (2048, 65, 1, 1, 1),
    "transformer_blocks.53.attn.add_q_proj.weight": (2048, 2048),
    "context_embedder.token_refiner.refiner_blocks.1.norm_out.linear.weight": (4096, 2048),
    "context_embedder_2.linear_1.weight": (2048, 1472),
    "image_embedder.linear_1.weight": (1152, 1152),
    "cond_type_embed.weight": (3, 2048),
}

OF_SOUND = {
    "proj_in.weight": (5376, 96),
    "audio_proj_in.weight": (5376, 32),
    "transformer_blocks.49.attn.to_q.weight": (7168, 5376),
    "transformer_blocks.49.adaln_proj.linear.weight": (96768, 2688),
    "transformer_blocks.0.ff.net.0.proj.weight": (28672, 5376),
    "token_refiner.refiner_blocks.1.attn.to_out.0.weight": (5376, 7168),
    "audio_proj_out.weight": (32, 5376),
}

# model -> transformer's folder, its tensors, its parameters, shapes of some
TRANSFORMERS: list[tuple[str, str, int, int, dict[str, tuple[int, ...]]]] = [
    ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "transformer", 825, 1_418_996_800, {}),
    ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "transformer", 1095, 14_288_491_584, OF_TEXT),
    ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "transformer", 1303, 16_394_878_784, OF_FEATURES),
    ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "transformer", 1303, 16_394_878_784, OF_FEATURES),
    ("Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "transformer", 1304, 16_395_536_704, OF_BOTH),
    ("Wan-AI/Wan2.1-VACE-1.3B-diffusers", "transformer", 1264, 2_153_972_032, {}),
    ("Wan-AI/Wan2.1-VACE-14B-diffusers", "transformer", 1331, 17_337_592_896, OF_CONTROL),
    ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "transformer", 1095, 14_288_491_584, OF_TEXT),
    ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "transformer_2", 1095, 14_288_491_584, OF_TEXT),
    ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "transformer", 825, 4_999_787_712, OF_5B),
    ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "transformer", 1095, 14_288_901_184, OF_IMAGES),
    ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "transformer_2", 1095, 14_288_901_184, OF_IMAGES),
    ("hunyuanvideo-community/HunyuanVideo", "transformer", 1264, 12_821_012_544, OF_HUNYUAN),
    ("hunyuanvideo-community/HunyuanVideo-I2V", "transformer", 1264, 12_821_012_544, OF_HUNYUAN),
    *(
        (
            f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{kind}",
            "transformer",
            1801,
            8_326_608_160,
            OF_DUAL_BLOCKS,
        )
        for kind in ("480p_t2v", "720p_t2v", "480p_i2v", "720p_i2v")
    ),
    ("MiniMaxAI/MiniMax-H3", "transformer", 638, 33_122_992_896, OF_SOUND),
]


def folder_of(model: str) -> Path:
    return PUBLISHED / model.replace("/", "--")


def values(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def on_meta(config: Path) -> nn.Module:
    kind = getattr(diffusers, values(config)["_class_name"])
    with torch.device("meta"):
        model: nn.Module = kind.from_config(values(config))
    return model


@pytest.mark.parametrize(("model", "component", "num_tensors", "num_parameters", "shapes"), TRANSFORMERS)
def test_transformers(
    model: str, component: str, num_tensors: int, num_parameters: int, shapes: dict[str, tuple[int, ...]]
) -> None:
    config = folder_of(model) / component / "config.json"
    tensors = on_meta(config).state_dict()
    assert len(tensors) == num_tensors
    assert sum(tensor.numel() for tensor in tensors.values()) == num_parameters
    assert {name: tuple(tensors[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize(
    "config", sorted(PUBLISHED.glob("*/transformer*/config.json")), ids=lambda config: "/".join(config.parts[-3:-1])
)
def test_transformers_weigh_what_plans_count_on(config: Path) -> None:
    costs = read_costs(values(config))
    counted = costs.root_parameters() + sum(all_parameters(costs))
    assert counted == sum(p.numel() for p in on_meta(config).parameters())


@pytest.mark.parametrize("folder", sorted(PUBLISHED.iterdir()), ids=lambda folder: folder.name)
def test_vaes_weigh_what_plans_count_on(folder: Path) -> None:
    vae = on_meta(folder / "vae" / "config.json")
    assert sum(p.numel() for p in vae.parameters()) == values(folder / "parameters.json")["vae"]


def test_image_encoders_weigh_what_plans_count_on() -> None:
    """CLIP ViT-H/14; index and weights can be of the class with or without a projection."""
    config = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
    )
    with torch.device("meta"):
        models = {kind.__name__: kind(config) for kind in (CLIPVisionModel, CLIPVisionModelWithProjection)}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    for model in ("Wan2.1-I2V-14B-480P-Diffusers", "Wan2.1-I2V-14B-720P-Diffusers", "Wan2.1-FLF2V-14B-720P-diffusers"):
        folder = folder_of(f"Wan-AI/{model}")
        named = values(folder / "model_index.json")["image_encoder"][1]
        assert values(folder / "parameters.json")["image_encoder"] == counts[named]
        assert Checkpoint(folder).family.components["image_encoder"] == named


def test_text_encoders_of_hunyuan_video_weigh_what_plans_count_on() -> None:
    """Llama 3 8B without its head, or Llava with it and CLIP ViT-L/14; in addition, CLIP's text encoder."""
    llama = LlamaConfig(vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_key_value_heads=8)
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    with torch.device("meta"):
        clip_text = CLIPTextModel(clip)
        models = {
            "HunyuanVideo": LlamaModel(llama),
            "HunyuanVideo-I2V": LlavaForConditionalGeneration(LlavaConfig(text_config=llama)),
        }
    for name, model in models.items():
        folder = folder_of(f"hunyuanvideo-community/{name}")
        count = sum(p.numel() for part in (model, clip_text) for p in part.parameters())
        assert values(folder / "parameters.json")["text_encoder"] == count
        assert Checkpoint(folder).family.components["text_encoder"] == type(model).__name__


def test_other_components_of_minimax_h3_weigh_what_plans_count_on() -> None:
    """Qwen3-VL 32B, whose head stays unused, and the VAE of sound; diffusers' defaults are the published sizes."""
    text = {"vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64}
    text |= {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    with torch.device("meta"):
        models = {
            "text_encoder": Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(text_config=text, vision_config={"out_hidden_size": 5120})
            ),
            "audio_vae": diffusers.AutoencoderKLMiniMaxH3Audio(),
        }
    counted = values(folder_of("MiniMaxAI/MiniMax-H3") / "parameters.json")
    for name, model in models.items():
        assert sum(p.numel() for p in model.parameters()) == counted[name]


@pytest.mark.parametrize("name", ["hunyuanvideo-720p", "hunyuanvideo-i2v-720p"])
def test_configs_of_hunyuan_video_are_what_its_pipelines_take_unasked(name: str) -> None:
    config = read_config(CONFIGS / f"{name}.yaml")
    folder = folder_of(config.model.path)
    check_request(config, Checkpoint(folder).info)
    call = getattr(diffusers, Checkpoint(folder).family.pipeline).__call__
    defaults = {key: parameter.default for key, parameter in inspect.signature(call).parameters.items()}
    for field in ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length"):
        assert getattr(config.sampling, field) == defaults[field]
    assert config.guidance.cfg_scale == defaults["true_cfg_scale"] == 1.0
    assert (config.guidance.embedded_scale, config.guidance.s2_scale) == (6.0, 0.25)


@pytest.mark.parametrize(
    ("model", "image", "last_image", "text_length", "boundary_ratio"),
    [
        ("Wan2.1-T2V-14B-Diffusers", "none", "none", None, None),
        ("Wan2.1-I2V-14B-480P-Diffusers", "required", "none", 512, None),
        ("Wan2.1-FLF2V-14B-720P-diffusers", "required", "required", 512, None),
        ("Wan2.2-I2V-A14B-Diffusers", "required", "optional", None, 0.9),
    ],
)
def test_what_wan_checkpoints_take(
    model: str, image: str, last_image: str, text_length: int | None, boundary_ratio: float | None
) -> None:
    info = Checkpoint(folder_of(f"Wan-AI/{model}")).info
    assert (info.num_blocks, info.latent_channels, info.spatial_factor, info.temporal_factor) == (40, 16, 8, 4)
    assert (info.image, info.last_image, info.text_length) == (image, last_image, text_length)
    assert info.boundary_ratio == boundary_ratio

"""Whole runs of the engine on a pretended GPU: encoders, guidance methods, both experts, LoRA, diffusers' pipelines."""

from pathlib import Path
from typing import Any

import pytest
import tiny_hunyuan
import tiny_hunyuan15
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep
from fake_cuda.cases import ALLOWED_SYNCS, ALLOWED_UPLOADS, guided_steps, unexpected
from fake_cuda.device import GPU, fake_gpu
from fake_cuda.published import FakeCheckpoint, fake_transformer, published_engine
from fake_cuda.ranks import fake_mesh
from PIL import Image
from safetensors.torch import save_file
from shapes.caption_encoder import build_tokenizer
from transformers import ByT5Tokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil

import s2video
from s2video.models.control import Control, Pictures
from s2video.models.images import Images

SMALL = "wan2.1-t2v-1.3b-480p"
OFFLOADED = {"model.offload_text_encoder": True}


# What the values of tensors decide in pipelines: place -> a number that fits a prompt and an image of the usual length.
LENGTHS = {
    "hunyuan_video/pipeline_hunyuan_video_image2video.py:_expand_input_ids_with_image_tokens": 934,
    "hunyuan_video/pipeline_hunyuan_video_image2video.py:_get_llama_prompt_embeds": 700,  # where an answer begins
    "hunyuan_video/family.py:conditioning": 200,
    "hunyuan_video15/family.py:conditioning": 200,
}


def tokenizers(model: str) -> dict[str, Any]:
    """Return small tokenizers, and processors of the published sizes; prompts of other lengths change no kernel."""

    def clip(size: int) -> CLIPImageProcessorPil:
        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    if model.startswith("wan"):
        return {"tokenizer": build_tokenizer(), "image_processor": clip(224)}
    if model.startswith("hunyuanvideo-1.5"):
        return {
            "tokenizer": tiny_hunyuan15.build_tokenizer(),
            "tokenizer_2": ByT5Tokenizer(),
            "feature_extractor": SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        }
    return {
        "tokenizer": tiny_hunyuan.build_llama_tokenizer(),
        "tokenizer_2": tiny_hunyuan.build_clip_tokenizer(),
        "image_processor": clip(336),
    }


@pytest.mark.parametrize(
    "guidance",
    [
        {"guidance.method": "apg"},
        {"guidance.method": "cfg_zero_star"},
        {"guidance.method": "slg", "guidance.slg.layers": [1], "guidance.slg.start": 0.0, "guidance.slg.stop": 1.0},
        {"guidance.rescale": 0.5, "guidance.num_draws": 2},
        {"guidance.batch_branches": True},
    ],
    ids=lambda guidance: " ".join(map(str, guidance.values())),
)
def test_guidance_methods(guidance: dict[str, Any]) -> None:
    with fake_mesh() as mesh, fake_gpu() as watchdog, published_engine(SMALL, mesh, **guidance) as engine:
        steps = guided_steps(engine, 2)
        watchdog.clear()
        assert steps().dtype == torch.float32
        assert not watchdog.faults, watchdog.faults
        assert not (found := unexpected(watchdog.syncs, ALLOWED_SYNCS)), found
        assert not (found := unexpected(watchdog.uploads, ALLOWED_UPLOADS)), found


def test_the_second_experts_turn() -> None:
    with fake_mesh() as mesh, fake_gpu() as watchdog, published_engine("wan2.2-t2v-a14b", mesh) as engine:
        steps = guided_steps(engine, 2)
        second = engine._experts._experts[1].module
        calls: list[int] = []
        second.blocks[0].register_forward_hook(lambda *_: calls.append(1))
        watchdog.clear()
        watchdog.answers["models/experts.py:index_at"] = False  # the timestep is below the boundary
        steps()
        assert calls and not watchdog.faults, watchdog.faults


@pytest.mark.parametrize(
    "model",
    [
        SMALL,  # UMT5
        "wan2.1-flf2v-14b-720p",  # and CLIP, two images through the VAE
        "wan2.1-vace-1.3b-480p",  # control of all kinds through the VAE
        "wan2.2-ti2v-5b",
        "hunyuanvideo-720p",  # LLaMA and CLIP
        "hunyuanvideo-i2v-720p",  # Llava, which sees the image
        "hunyuanvideo-1.5-t2v-480p",  # Qwen and, for text in quotes, ByT5
        "hunyuanvideo-1.5-i2v-480p",  # and SigLIP
    ],
)
def test_a_whole_run_encodes_and_denoises(model: str) -> None:
    """Every text and image encoder, at its width with two or three layers, in CPU memory between its uses."""
    with (
        fake_mesh() as mesh,
        fake_gpu() as watchdog,
        published_engine(
            model, mesh, tokenizers=tokenizers(model), **{"sampling.num_inference_steps": 2, **OFFLOADED}
        ) as engine,
    ):
        watchdog.answers |= LENGTHS
        sampling, info = engine.config.sampling, engine.checkpoint.info
        image = Image.new("RGB", (sampling.width, sampling.height))
        images: Pictures | None = None
        if info.control_layers:
            frames = (image,) * sampling.num_frames
            images = Control(frames, tuple(frame.convert("L") for frame in frames), (image,))
        elif info.image != "none":
            images = Images(image, image if info.last_image == "required" else None)
        latents = engine.sample(['a red circle, below it "S2"'], [3], images=images)
        shape = engine.latent_shape
        assert latents.device.type == "cuda" and latents.dtype == torch.float32
        assert tuple(latents.shape[2:]) == (shape.frames, shape.height, shape.width)
        assert not watchdog.faults, watchdog.faults


def test_enable_in_diffusers_pipeline() -> None:
    """The pipeline's own loop with the published transformer, S² switched on."""
    with fake_gpu() as watchdog:
        transformer = fake_transformer(FakeCheckpoint(SMALL, 4), torch.bfloat16)
        pipe = WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=transformer,
        )
        pipe.set_progress_bar_config(disable=True)
        text = torch.empty(1, 512, 4096, dtype=torch.bfloat16, device=GPU)
        s2video.enable(pipe, s2_scale=0.25, drop_ratio=0.3, mask_seed=0)
        latents = pipe(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            latents=torch.empty(1, 16, 21, 60, 104, device=GPU),
            height=480,
            width=832,
            num_inference_steps=2,
            output_type="latent",
        ).frames
        assert latents.device.type == "cuda"
        # diffusers' pipelines hand their scheduler predictions in the transformer's dtype
        found = [fault for fault in watchdog.faults if " at schedulers/" not in fault]
        assert not found, found


def test_the_guider_in_a_modular_pipeline() -> None:
    """Modular Wan's own loop with the published transformer: cond, uncond and sub are calls of the whole model."""
    with fake_gpu() as watchdog:
        watchdog.answers["schedulers/scheduling_flow_match_euler_discrete.py:index_for_timestep"] = 0
        pipe = WanCoreDenoiseStep().init_pipeline()
        pipe.update_components(
            transformer=fake_transformer(FakeCheckpoint(SMALL, 4), torch.bfloat16),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            guider=s2video.S2Guidance(5.0, s2_scale=0.25, drop_ratio=0.3, start=0.0, stop=1.0),
        )
        pipe.set_progress_bar_config(disable=True)
        calls: list[int] = []
        pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
        text = torch.empty(1, 512, 4096, dtype=torch.bfloat16, device=GPU)
        latents = pipe(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            latents=torch.empty(1, 16, 21, 60, 104, device=GPU),
            height=480,
            width=832,
            num_frames=81,
            num_inference_steps=2,
            output="latents",
        )
        assert latents.device.type == "cuda" and len(calls) == 4  # sub starts from cond's state after block 0
        found = [fault for fault in watchdog.faults if " at schedulers/" not in fault]  # as with `enable`
        assert not found, found


def test_lora_adds_no_mix_of_dtypes(tmp_path: Path) -> None:
    """From a file with pairs in float32 and in bfloat16, as `model.lora` names it."""
    name, width, rank = "diffusion_model.blocks.0.self_attn", 1536, 16
    file = tmp_path / "lora.safetensors"
    save_file(
        {
            f"{name}.q.lora_down.weight": torch.ones(rank, width),
            f"{name}.q.lora_up.weight": torch.ones(width, rank),
            f"{name}.k.lora_down.weight": torch.ones(rank, width, dtype=torch.bfloat16),
            f"{name}.k.lora_up.weight": torch.ones(width, rank, dtype=torch.bfloat16),
        },
        file,
    )
    loras = {"model.lora": [{"path": str(file), "scale": 0.5}]}
    with fake_mesh() as mesh, fake_gpu() as watchdog, published_engine(SMALL, mesh, **loras) as engine:
        transformer = engine._experts._experts[0].module
        assert "lora_1" in transformer.peft_config
        for parameter_name, parameter in transformer.named_parameters():
            assert parameter.device.type == "cuda", parameter_name
        steps = guided_steps(engine, 1)
        watchdog.clear()
        steps()
        assert not watchdog.faults, watchdog.faults
        assert not (found := unexpected(watchdog.uploads, ALLOWED_UPLOADS)), found

"""Whole runs of the engine on a pretended GPU: encoders, guidance methods, both experts, LoRA, diffusers' pipelines."""

from typing import Any

import pytest
import tiny_hunyuan
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from fake_cuda.cases import ALLOWED_SYNCS, ALLOWED_UPLOADS, guided_steps, unexpected
from fake_cuda.device import GPU, fake_gpu
from fake_cuda.published import FakeCheckpoint, fake_transformer, published_engine
from fake_cuda.ranks import fake_mesh
from PIL import Image
from shapes.caption_encoder import build_tokenizer
from transformers import CLIPImageProcessorPil

import s2video
from s2video.models.images import Images

SMALL = "wan2.1-t2v-1.3b-480p"


def tokenizers(model: str) -> dict[str, Any]:
    """Return small tokenizers; prompts of other lengths change no kernel."""
    if model.startswith("wan"):
        size = {"height": 224, "width": 224}
        return {
            "tokenizer": build_tokenizer(),
            "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=size),
        }
    return {"tokenizer": tiny_hunyuan.build_llama_tokenizer(), "tokenizer_2": tiny_hunyuan.build_clip_tokenizer()}


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


@pytest.mark.parametrize("model", [SMALL, "wan2.2-ti2v-5b", "hunyuanvideo-720p"])
def test_a_whole_run_encodes_and_denoises(model: str) -> None:
    changes = {"sampling.num_inference_steps": 3}
    with (
        fake_mesh() as mesh,
        fake_gpu() as watchdog,
        published_engine(model, mesh, tokenizers=tokenizers(model), **changes) as engine,
    ):
        sampling = engine.config.sampling
        image = Image.new("RGB", (sampling.width, sampling.height))
        images = Images(image) if engine.checkpoint.info.image != "none" else None
        latents = engine.sample(["a red circle"], [3], images=images)
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


def test_lora_adds_no_mix_of_dtypes() -> None:
    from peft import LoraConfig

    with fake_mesh() as mesh, fake_gpu() as watchdog, published_engine(SMALL, mesh) as engine:
        transformer = engine._experts._experts[0].module
        transformer.add_adapter(LoraConfig(r=16, target_modules=["to_q", "to_v"], init_lora_weights=False))
        for name, parameter in list(transformer.named_parameters()):
            assert parameter.device.type == "cuda", name
        steps = guided_steps(engine, 1)
        watchdog.clear()
        steps()
        assert not watchdog.faults, watchdog.faults

"""Modular pipelines of diffusers that take a guider, in miniature: their denoising, with parts of `tiny_matrix.py`."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import build_scheduler, build_vae
from tiny_matrix import MINIATURES
from tiny_models import IMAGE, NUM_BLOCKS, SIZE, TEXT, WAN, model, random, texts


@dataclass(frozen=True, eq=False)
class Guided:
    """A row of the guider's matrix.

    Attributes:
        blocks: module and class of the pipeline's denoising, below `diffusers.modular_pipelines`; None for a classic
            pipeline with a guider.
        parts: the row of `tiny_matrix.MINIATURES` that has its components and arguments, or a function that makes them.
        inputs: what other blocks of the pipeline compute.
        output: name of its result.
        second: the name of its second guider.
    """

    blocks: tuple[str, str] | None
    parts: str | Callable[[], tuple[dict[str, Any], dict[str, Any]]]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    output: str = "latents"
    second: str | None = None

    def build(self) -> tuple[Any, dict[str, Any]]:
        """Return a modular pipeline without a guider, and the arguments of a run of two steps."""
        if self.blocks is None:
            assert isinstance(self.parts, str)
            classic, arguments = MINIATURES[self.parts].build()  # not the one that `enable` is tested with
            classic.set_progress_bar_config(disable=True)
            return classic, {**arguments, "num_inference_steps": 2, "output_type": "latent"}
        package, name = self.blocks
        blocks = getattr(importlib.import_module(f"diffusers.modular_pipelines.{package}"), name)()
        if callable(self.parts):
            components, arguments = self.parts()
        else:
            classic, arguments = MINIATURES[self.parts].built()
            components = classic.components
        pipe = blocks.init_pipeline()
        names = {component.name for component in blocks.expected_components}
        pipe.update_components(**{n: part for n, part in components.items() if n in names and part is not None})
        pipe.set_progress_bar_config(disable=True)
        known = {given.name for given in blocks.inputs}
        used = {name: value for name, value in arguments.items() if name in known}
        steps = {} if "pyramid_num_inference_steps_list" in known else {"num_inference_steps": 2}
        return pipe, {**used, **steps, **self.inputs, "output": self.output}


def wan_image_to_video() -> tuple[dict[str, Any], dict[str, Any]]:
    sees = {"in_channels": 36, "out_channels": 16, "image_dim": IMAGE, "added_kv_proj_dim": 24}
    components = {"transformer": model("WanTransformer3DModel", **WAN, **sees), "scheduler": build_scheduler()}
    seen = {"image_condition_latents": random(1, 20, 2, 4, 6), "image_embeds": random(1, 257, IMAGE)}
    return components, {**texts(lengths=(512, 512)), **SIZE, "num_frames": 5, **seen}


def wan_vace() -> tuple[dict[str, Any], dict[str, Any]]:
    """As Wan 2.2 VACE, with one transformer in both places."""
    pipe, arguments = MINIATURES["WanVACEPipeline"].built()
    components = {"transformer": pipe.transformer, "transformer_2": pipe.transformer, "scheduler": pipe.scheduler}
    return components, arguments


def wan_animate_2() -> tuple[dict[str, Any], dict[str, Any]]:
    transformer = model(
        "WanAnimate2Transformer3DModel",
        **{"dim": 24, "ffn_dim": 32, "freq_dim": 16, "text_dim": TEXT, "text_len": 7, "num_heads": 2},
        **{"num_layers": NUM_BLOCKS, "use_img_emb": False},
    )
    components = {"transformer": transformer, "vae": build_vae(), "scheduler": FlowMatchEulerDiscreteScheduler()}
    text = {name: list(value) for name, value in texts().items()}
    size = {"height": 32, "width": 32, "segment_frame_length": 5, "num_segments": 1, "effective_segment": 4}
    seen = {
        "reference_image_latents": random(20, 1, 4, 4),
        "driving_video_pixels": random(1, 3, 5, 32, 32).clamp(-1, 1),
        "condition_clip_context": random(1, 257, IMAGE),
        "prompt_ref_embeds": [random(7, TEXT, seed=5)],
    }
    return components, {**text, **size, **seen}


_CONNECTED = {
    f"{kind}connector_{name}": value
    for kind, seed in (("", 1), ("negative_", 2))
    for name, value in {
        "prompt_embeds": random(1, 7, TEXT, seed=seed),
        "audio_prompt_embeds": random(1, 7, TEXT, seed=seed + 2),
        "attention_mask": torch.ones(1, 7, dtype=torch.long),
    }.items()
}
_CONNECTED |= {"batch_size": 1, "dtype": torch.float32}

GUIDED = {
    "WanImage2VideoModularPipeline": Guided(
        ("wan.modular_blocks_wan_i2v", "WanImage2VideoCoreDenoiseStep"), wan_image_to_video
    ),
    "Wan22VaceModularPipeline": Guided(
        ("wan.modular_blocks_wan_vace", "Wan22VaceCoreDenoiseStep"),
        wan_vace,
        {"denoiser_input_fields": {"control_hidden_states": random(1, 96, 2, 4, 6)}},
        second="guider_2",
    ),
    "WanAnimate2ModularPipeline": Guided(
        ("wan_animate_2.modular_blocks_wan_animate_2", "WanAnimate2CoreDenoiseStep"),
        wan_animate_2,
        output="segment_frames",
    ),
    "LTXModularPipeline": Guided(("ltx.modular_blocks_ltx", "LTXCoreDenoiseStep"), "LTXPipeline"),
    "LTX2ModularPipeline": Guided(
        ("ltx2.modular_blocks_ltx2", "LTX2CoreDenoiseStep"), "LTX2Pipeline", _CONNECTED, second="audio_guider"
    ),
    "HeliosModularPipeline": Guided(("helios.modular_blocks_helios", "HeliosCoreDenoiseStep"), "HeliosPipeline"),
    "HeliosPyramidModularPipeline": Guided(
        ("helios.modular_blocks_helios_pyramid", "HeliosPyramidCoreDenoiseStep"), "HeliosPyramidPipeline"
    ),
    "Flux2KleinModularPipeline": Guided(
        ("flux2.modular_blocks_flux2_klein_base", "Flux2KleinBaseCoreDenoiseStep"), "Flux2KleinPipeline"
    ),
    "StableDiffusion3ModularPipeline": Guided(
        ("stable_diffusion_3.modular_blocks_stable_diffusion_3", "StableDiffusion3T2ICoreDenoiseStep"),
        "StableDiffusion3Pipeline",
    ),
    "QwenImageModularPipeline": Guided(
        ("qwenimage.modular_blocks_qwenimage", "QwenImageCoreDenoiseStep"), "QwenImagePipeline"
    ),
    "MotifVideoPipeline": Guided(None, "MotifVideoPipeline"),
    "ZImageModularPipeline": Guided(("z_image.modular_blocks_z_image", "ZImageCoreDenoiseStep"), "ZImagePipeline"),
}

"""`S2Guidance` in Modular Wan and in HunyuanVideo 1.5: Eq. 4, the manners of a guider, nothing left behind."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    WanPipeline,
)
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks
from tiny import MAX_SEQUENCE_LENGTH, NUM_BLOCKS, PROMPT, SIZE, tiny_config
from torch import Tensor, nn

import s2video
from s2video.errors import InputError
from s2video.pipeline import Engine


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Any:
    classic = WanPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    modular = WanBlocks().init_pipeline()
    modular.update_components(
        **{name: classic.components[name] for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
    )
    modular.set_progress_bar_config(disable=True)
    return modular


def run(pipe: Any, guider: Any) -> Tensor:
    pipe.update_components(guider=guider)
    latents: Tensor = pipe(
        prompt=PROMPT,
        negative_prompt="",
        num_inference_steps=6,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=torch.Generator().manual_seed(7),
        output="latents",
        **SIZE,
    )
    return latents


@pytest.mark.parametrize(
    ("cfg_scale", "more"),
    [(5.0, {}), (5.0, {"num_draws": 2, "drop_count": 1}), (1.0, {})],
    ids=["cfg", "two-draws", "no-cfg"],
)
def test_guider_and_engine_make_the_same_video(
    pipe: Any, tiny_checkpoint: Path, cfg_scale: float, more: dict[str, Any]
) -> None:
    guider = s2video.S2Guidance(guidance_scale=cfg_scale, s2_scale=0.4, **{"drop_ratio": 0.3, "mask_seed": 5, **more})
    config = tiny_config(tiny_checkpoint, cfg_scale=cfg_scale, s2_scale=0.4, mask_seed=5, **more)
    expected = Engine(config).sample([PROMPT], [7])
    first = run(pipe, guider)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0)
    assert torch.equal(run(pipe, guider), first)  # nothing is carried over from one video to the next


def test_one_step_of_hunyuan_video_15_is_equation_4() -> None:
    """Texts of different lengths; sub is the transformer with a shorter block list."""
    torch.manual_seed(1)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=6,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=10,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        target_size=64,
        task_type="t2v",
    ).eval()
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1)
    pipe = HunyuanVideo15Pipeline(
        None, None, transformer, vae, FlowMatchEulerDiscreteScheduler(), None, None, ClassifierFreeGuidance(5.0)
    )
    pipe.set_progress_bar_config(disable=True)
    texts: dict[str, Tensor] = {}
    for name, lengths in (("prompt", (7, 3)), ("negative_prompt", (5, 0))):
        for suffix, width, room, length in (("", 16, 7, lengths[0]), ("_2", 10, 4, lengths[1])):
            texts[f"{name}_embeds{suffix}"] = torch.randn(1, room, width)
            texts[f"{name}_embeds_mask{suffix}"] = (torch.arange(room) < length).long()[None]
    given: list[Tensor] = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda prediction, *a, **k: given.append(prediction) or step(prediction, *a, **k)
    calls: list[dict[str, Any]] = []
    forward = transformer.forward
    transformer.forward = lambda **keywords: calls.append(keywords) or forward(**keywords)

    def one_step() -> None:
        pipe(
            **texts,
            height=64,
            width=96,
            num_frames=5,
            num_inference_steps=1,
            output_type="latent",
            generator=torch.Generator().manual_seed(7),
        )

    one_step()
    del transformer.forward
    shortened = copy.deepcopy(transformer)
    shortened.transformer_blocks = nn.ModuleList(
        block for i, block in enumerate(transformer.transformer_blocks) if i not in (2, 4)
    )
    with torch.no_grad():
        cond, sub = (model(**calls[0])[0] for model in (transformer, shortened))
    pipe.guider = s2video.S2Guidance(5.0, s2_scale=0.4, drop_count=2, never_drop=(0, 1, 3, 5), start=0.0, stop=1.0)
    one_step()
    assert not torch.equal(cond, sub)
    torch.testing.assert_close(given[1], given[0] - 0.4 * (sub - cond), atol=1e-6, rtol=0)
    assert type(transformer) is HunyuanVideo15Transformer3DModel


def test_without_s2_it_is_cfg(pipe: Any) -> None:
    cfg = run(pipe, ClassifierFreeGuidance(guidance_scale=5.0))
    assert torch.equal(run(pipe, s2video.S2Guidance(guidance_scale=5.0, s2_scale=0.0)), cfg)


def test_disabled_it_is_cond() -> None:
    guider = s2video.S2Guidance()
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
    assert guider.num_conditions == 3
    guider.disable()
    assert guider.num_conditions == 1
    cond = torch.ones(1)
    assert guider.forward(cond).pred is cond


@pytest.mark.parametrize("call", [0, 2 * NUM_BLOCKS + 2], ids=["in-cond", "in-sub"])
def test_an_interrupted_call_leaves_nothing_behind(pipe: Any, call: int) -> None:
    transformer = pipe.transformer
    guider = s2video.S2Guidance(s2_scale=0.4, start=0.0, stop=1.0, drop_count=1)
    before = type(transformer), [id(block) for block in transformer.blocks], run(pipe, guider)
    calls = 0

    def fails(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise KeyboardInterrupt

    hooks = [block.register_forward_pre_hook(fails) for block in transformer.blocks]
    with pytest.raises(KeyboardInterrupt):
        run(pipe, guider)
    for hook in hooks:
        hook.remove()
    assert calls == call + 1
    assert (type(transformer), [id(block) for block in transformer.blocks]) == before[:2]
    assert not [name for name in transformer.__dict__ if "s2video" in name]
    assert torch.equal(run(pipe, guider), before[2])


def test_manners_of_a_guider(tmp_path: Path) -> None:
    guider = s2video.S2Guidance(guidance_scale=4.0, s2_scale=0.3, never_drop=(0, 5), band=(1, 8), mask_seed=9)
    guider.save_pretrained(tmp_path)
    for other in (s2video.S2Guidance.from_pretrained(tmp_path), guider.new()):
        assert (other._spec, other._guidance) == (guider._spec, guider._guidance)
    assert guider.new(s2_scale=0.1).config.s2_scale == 0.1
    assert '"s2_scale": 0.3' in repr(guider) and "num_conditions" in repr(guider)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"s2_scale": -1.0}, "s2_scale"),
        ({"drop_ratio": 2.0}, "drop_ratio"),
        ({"band": (3, 1)}, "band"),
        ({"num_draws": 0}, "num_draws"),
        ({"guidance_scale": float("nan")}, "cfg_scale"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        s2video.S2Guidance(**settings)


def test_other_models_are_refused_by_name() -> None:
    guider = s2video.S2Guidance()
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
    with pytest.raises(InputError, match="came Linear"):
        guider.prepare_models(nn.Linear(2, 2))

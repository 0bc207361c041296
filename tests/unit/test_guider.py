"""Tests of `S2Guidance` in modular Wan and HunyuanVideo 1.5: Eq. 4, the interface of guiders, complete restoration."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    WanPipeline,
)
from diffusers.modular_pipelines.hunyuan_video1_5.modular_blocks_hunyuan_video1_5 import HunyuanVideo15CoreDenoiseStep
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks
from diffusers.modular_pipelines.wan.modular_blocks_wan22 import Wan22Blocks
from tiny import MAX_SEQUENCE_LENGTH, NUM_BLOCKS, PROMPT, SIZE, build_transformer, tiny_config
from tiny_pipelines import build_hunyuan_video_15
from torch import Tensor, nn

import s2video
from s2video.engine.engine import Engine
from s2video.errors import InputError


@pytest.fixture(scope="module")
def classic(tiny_checkpoint: Path) -> Any:
    return WanPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def pipe(classic: Any) -> Any:
    return modular(WanBlocks(), classic, "tokenizer", "text_encoder", "transformer", "vae", "scheduler")


def modular(blocks: Any, classic: Any, *names: str, **components: Any) -> Any:
    """Return a modular pipeline with the components of a classic one."""
    made = blocks.init_pipeline()
    made.update_components(**{name: classic.components[name] for name in names}, **components)
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, guider: Any, guider_2: Any = None, num_steps: int = 6) -> Tensor:
    pipe.update_components(guider=guider, **({} if guider_2 is None else {"guider_2": guider_2}))
    latents: Tensor = pipe(
        prompt=PROMPT,
        negative_prompt="",
        num_inference_steps=num_steps,
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
    assert torch.equal(run(pipe, guider), first)  # no state is kept between videos


def run_classic(pipe: Any, **arguments: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    latents: Tensor = pipe(**arguments, generator=generator, output_type="latent", return_dict=False)[0]
    return latents


@pytest.mark.parametrize("scales", [(4.0, 3.0), (4.0, 1.0), (1.0, 1.0)])
def test_both_guiders_of_wan_22(classic: Any, scales: tuple[float, float]) -> None:
    """Two transformers and λs share one series of masks; results equal `enable`, which is tested against Eq. 4."""
    settings = {"s2_scale": 0.4, "drop_ratio": 0.3, "mask_seed": 5}
    two = WanPipeline(**{**classic.components, "transformer_2": build_transformer(seed=1)}, boundary_ratio=0.875)
    s2video.enable(two, **settings)
    arguments = {"prompt": PROMPT, "max_sequence_length": MAX_SEQUENCE_LENGTH, **SIZE, "num_inference_steps": 6}
    expected = run_classic(two, guidance_scale=scales[0], guidance_scale_2=scales[1], **arguments)
    s2video.disable(two)
    names = ("tokenizer", "text_encoder", "transformer", "transformer_2", "vae", "scheduler")
    pipe = modular(Wan22Blocks(), two, *names, boundary_ratio=0.875)
    guiders = [s2video.S2Guidance(scale, **settings) for scale in scales]
    for _ in range(2):  # no state is kept between videos
        torch.testing.assert_close(run(pipe, *guiders), expected, atol=1e-5, rtol=0)
    assert (run(pipe, guiders[0], guiders[0].new(s2_scale=0.0)) - expected).abs().max() > 1e-3


def test_only_the_second_guider_asks_for_uncond(classic: Any) -> None:
    """Also in the second video, although the first guider's last step has no sub prediction. Not in WanPipeline."""
    two = WanPipeline(**{**classic.components, "transformer_2": classic.transformer}, boundary_ratio=0.5)
    names = ("tokenizer", "text_encoder", "transformer", "transformer_2", "vae", "scheduler")
    pipe = modular(Wan22Blocks(), two, *names, boundary_ratio=0.5)
    guiders = [s2video.S2Guidance(scale, s2_scale=0.4, start=0.0, stop=0.1) for scale in (1.0, 3.0)]
    assert torch.equal(run(pipe, *guiders), run(pipe, *guiders))


@pytest.mark.parametrize("cfg_scale", [5.0, 1.0])
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_one_step_of_hunyuan_video_15_is_equation_4(task: str, cfg_scale: float) -> None:
    """The texts differ in length; sub is the transformer with a shorter block list."""
    pipe, arguments = build_hunyuan_video_15(task)
    pipe.guider = ClassifierFreeGuidance(cfg_scale)
    transformer = pipe.transformer
    given: list[Tensor] = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda prediction, *a, **k: given.append(prediction) or step(prediction, *a, **k)
    calls: list[dict[str, Any]] = []
    forward = transformer.forward
    transformer.forward = lambda **keywords: calls.append(keywords) or forward(**keywords)
    run_classic(pipe, num_inference_steps=1, **arguments)
    del transformer.forward
    shortened = copy.deepcopy(transformer)
    shortened.transformer_blocks = nn.ModuleList(
        block for i, block in enumerate(transformer.transformer_blocks) if i not in (2, 4)
    )
    with torch.no_grad():
        cond, sub = (model(**calls[0])[0] for model in (transformer, shortened))
    pipe.guider = s2video.S2Guidance(
        cfg_scale, s2_scale=0.4, drop_count=2, never_drop=(0, 1, 3, 5), start=0.0, stop=1.0
    )
    run_classic(pipe, num_inference_steps=1, **arguments)
    assert not torch.equal(cond, sub)
    torch.testing.assert_close(given[1], given[0] - 0.4 * (sub - cond), atol=1e-6, rtol=0)
    assert type(transformer) is HunyuanVideo15Transformer3DModel


def test_hunyuan_video_15_in_three_ways() -> None:
    """`enable` with another guider, our guider in the classic pipeline, and in the modular one are equal."""
    settings = {"s2_scale": 0.4, "drop_ratio": 0.3, "mask_seed": 5, "num_draws": 2}
    classic, arguments = build_hunyuan_video_15()
    arguments["num_inference_steps"] = 4
    s2video.enable(classic, **settings)
    expected = run_classic(classic, **arguments)
    s2video.disable(classic)
    guider = s2video.S2Guidance(5.0, **settings)
    classic.guider = guider
    torch.testing.assert_close(run_classic(classic, **arguments), expected, atol=1e-5, rtol=0)
    pipe = modular(HunyuanVideo15CoreDenoiseStep(), classic, "transformer", "scheduler", guider=guider)
    # a modular pipeline reads them from the VAE, which is missing here
    parts = ("vae_scale_factor_spatial", "vae_scale_factor_temporal", "num_channels_latents")
    kind = type(pipe)
    pipe.__class__ = type(kind.__name__, (kind,), {name: getattr(classic, name) for name in parts})
    got = pipe(**arguments, generator=torch.Generator().manual_seed(7), output="latents")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_a_pipeline_keeps_it_in_its_folder(tmp_path: Path) -> None:
    pipe, _ = build_hunyuan_video_15()
    pipe.guider = s2video.S2Guidance(4.0, s2_scale=0.3)
    pipe.save_pretrained(tmp_path)
    without = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    loaded = HunyuanVideo15Pipeline.from_pretrained(tmp_path, **without).guider
    assert isinstance(loaded, s2video.S2Guidance) and loaded._guidance == pipe.guider._guidance


def test_compiled_blocks_are_not_compiled_again_for_another_mask(tiny_checkpoint: Path) -> None:
    fresh = WanPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    pipe = modular(WanBlocks(), fresh, "tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    guider = s2video.S2Guidance(s2_scale=0.4, start=0.0, stop=1.0)
    expected = run(pipe, guider)
    torch._dynamo.reset()
    for block in pipe.transformer.blocks:
        block.compile(backend="eager", fullgraph=True)
    run(pipe, guider.new(mask_seed=1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(run(pipe, guider), expected, atol=1e-5, rtol=0)


def test_without_s2_it_is_cfg(pipe: Any) -> None:
    cfg = run(pipe, ClassifierFreeGuidance(guidance_scale=5.0))
    assert torch.equal(run(pipe, s2video.S2Guidance(guidance_scale=5.0, s2_scale=0.0)), cfg)


def test_a_push_sets_the_strength_of_each_sample() -> None:
    """What S² adds has the length of 0.1 · cond, for each sample; it is saved with the other settings."""
    guider = s2video.S2Guidance(guidance_scale=3.0, s2_push=0.1)
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
    assert guider.num_conditions == 3
    cond, uncond, sub = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    pushed = guider.forward(cond, uncond, pred_sub_0=sub).pred - (uncond + 3.0 * (cond - uncond))
    lengths = pushed.flatten(1).norm(dim=1) / cond.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((2,), 0.1))
    assert ((pushed * (cond - sub)).flatten(1).sum(dim=1) > 0).all()  # away from sub
    assert guider.new().config.s2_push == 0.1
    with pytest.raises(InputError, match=r"s2_scale 0\.5 and s2_push 0\.1"):
        s2video.S2Guidance(s2_scale=0.5, s2_push=0.1)


@pytest.mark.parametrize("reuse", ["deviation", "light", "fast", {"sub_every": 3, "sub_until": 0.8}], ids=str)
def test_reuse_makes_the_video_of_enable(classic: Any, pipe: Any, reuse: Any) -> None:
    """Which is that of the engine; the scheduler's timesteps are rounded, and its noise levels are not."""
    settings: dict[str, Any] = {"s2_push": 0.1, "drop_ratio": 0.3, "mask_seed": 5, "reuse": reuse}
    s2video.enable(classic, **settings)
    arguments = {"prompt": PROMPT, "max_sequence_length": MAX_SEQUENCE_LENGTH, **SIZE, "num_inference_steps": 16}
    expected = run_classic(classic, guidance_scale=3.0, **arguments)
    s2video.disable(classic)
    guider = s2video.S2Guidance(3.0, **settings)
    if reuse in ("light", "fast"):  # others need no noise levels
        guider.scheduler = pipe.scheduler
    made = run(pipe, guider, num_steps=16)
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=0)
    assert torch.equal(run(pipe, guider, num_steps=16), made)  # no prediction is kept between videos
    assert guider._video is None


def test_reuse_with_two_guiders(classic: Any) -> None:
    """Forecasts of the second transformer start from its own predictions."""
    two = WanPipeline(**{**classic.components, "transformer_2": build_transformer(seed=1)}, boundary_ratio=0.875)
    settings = {"s2_scale": 0.4, "drop_ratio": 0.3, "mask_seed": 5, "reuse": "fast"}
    s2video.enable(two, **settings)
    arguments = {"prompt": PROMPT, "max_sequence_length": MAX_SEQUENCE_LENGTH, **SIZE, "num_inference_steps": 16}
    expected = run_classic(two, guidance_scale=3.0, guidance_scale_2=2.0, **arguments)
    s2video.disable(two)
    names = ("tokenizer", "text_encoder", "transformer", "transformer_2", "vae", "scheduler")
    pipe = modular(Wan22Blocks(), two, *names, boundary_ratio=0.875)
    guiders = [s2video.S2Guidance(scale, **settings) for scale in (3.0, 2.0)]
    for guider in guiders:
        guider.scheduler = pipe.scheduler
    torch.testing.assert_close(run(pipe, *guiders, num_steps=16), expected, atol=2e-5, rtol=0)


def test_reuse_is_refused_where_it_cannot_be(pipe: Any) -> None:
    guider = s2video.S2Guidance(3.0, reuse="fast")
    with pytest.raises(InputError, match="expected at least 16 steps, got 6"):
        run(pipe, guider)
    with pytest.raises(InputError, match=r"got none; set guider\.scheduler = pipe\.scheduler, or use reuse deviation"):
        run(pipe, guider, num_steps=16)
    guider.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="got one with other timesteps"):
        run(pipe, guider, num_steps=16)
    with pytest.warns(UserWarning, match="reuse deviation is safer"):
        s2video.S2Guidance(5.0, reuse="light")


def test_disabled_it_is_cond() -> None:
    guider = s2video.S2Guidance()
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
    assert guider.num_conditions == 3
    guider.disable()
    assert guider.num_conditions == 1
    cond = torch.ones(1)
    assert guider.forward(cond).pred is cond


def test_blocks_that_another_wrapper_runs_in_sub_are_noticed(pipe: Any) -> None:
    """A step cache of another package that runs its own list of blocks in later calls would make sub equal to cond."""
    transformer, num_calls = pipe.transformer, 0
    blocks, forward = transformer.blocks, transformer.forward

    def cached(*arguments: Any, **keywords: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        given = transformer._modules["blocks"]
        transformer._modules["blocks"] = given if num_calls == 1 else blocks
        try:
            return forward(*arguments, **keywords)
        finally:
            transformer._modules["blocks"] = given

    transformer.forward = cached
    try:
        with pytest.raises(InputError, match="expected the transformer to run each of its blocks"):
            run(pipe, s2video.S2Guidance(s2_scale=0.4, start=0.0, stop=1.0))
    finally:
        del transformer.forward
    assert transformer.blocks is blocks


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [0, 2 * NUM_BLOCKS + 2], ids=["in-cond", "in-sub"])
def test_an_interrupted_call_leaves_nothing_behind(pipe: Any, error: type[BaseException], call: int) -> None:
    transformer = pipe.transformer
    guider = s2video.S2Guidance(s2_scale=0.4, start=0.0, stop=1.0, drop_count=1)
    before = type(transformer), [id(block) for block in transformer.blocks], run(pipe, guider)
    calls = 0

    def fails(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise error

    hooks = [block.register_forward_pre_hook(fails) for block in transformer.blocks]
    with pytest.raises(error):
        run(pipe, guider)
    for hook in hooks:
        hook.remove()
    assert calls == call + 1
    assert (type(transformer), [id(block) for block in transformer.blocks]) == before[:2]
    assert not [name for name in transformer.__dict__ if "s2video" in name]
    assert torch.equal(run(pipe, guider), before[2])


def test_manners_of_a_guider(tmp_path: Path) -> None:
    guider = s2video.S2Guidance(
        4.0, s2_scale=0.3, never_drop=(0, 5), band=(1, 8), mask_seed=9, reuse={"preset": "light", "start": 0.4}
    )
    guider.save_pretrained(tmp_path)
    for other in (s2video.S2Guidance.from_pretrained(tmp_path), guider.new()):
        assert (other._spec, other._guidance) == (guider._spec, guider._guidance)
    assert guider.new(s2_scale=0.1).config.s2_scale == 0.1
    assert '"s2_scale": 0.3' in repr(guider) and "num_conditions" in repr(guider)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s2_scale": -1.0}, "s2_scale"),
        ({"drop_ratio": 2.0}, "drop_ratio"),
        ({"band": (3, 1)}, "band"),
        ({"num_draws": 0}, "num_draws"),
        ({"guidance_scale": float("nan")}, "cfg_scale"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        s2video.S2Guidance(**settings)


def test_other_models_are_refused_by_name() -> None:
    guider = s2video.S2Guidance()
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
    with pytest.raises(InputError, match="got Linear"):
        guider.prepare_models(nn.Linear(2, 2))

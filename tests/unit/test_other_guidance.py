"""Tests of other guidance methods against diffusers' guiders, alone and in a whole pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    SkipLayerGuidance,
    WanPipeline,
)
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, SIZE, tiny_config
from torch import Tensor

from s2video.config.run import build_config
from s2video.engine.engine import Engine
from s2video.guidance.equations import Predictions
from s2video.records.sidecar import job_facts
from s2video.sampling.guiders import OtherGuidance

NUM_STEPS = 6
SLG = {"scale": 1.5, "start": 0.0, "stop": 0.7, "layers": [2, 4]}
GUIDERS: dict[str, tuple[dict[str, Any], Any]] = {
    "cfg-zero-star": (
        {"method": "cfg_zero_star", "cfg_zero_star": {"zero_init_steps": 2}},
        ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=2),
    ),
    "cfg-zero-star-without-zeros": (
        {"method": "cfg_zero_star", "cfg_zero_star": {"zero_init_steps": 0}, "rescale": 0.3},
        ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=0, guidance_rescale=0.3),
    ),
    "apg": (
        {"method": "apg", "apg": {"momentum": -0.5, "rescale": 2.0, "eta": 0.2}},
        AdaptiveProjectedGuidance(5.0, -0.5, adaptive_projected_guidance_rescale=2.0, eta=0.2),
    ),
    "apg-without-momentum": ({"method": "apg", "apg": {"eta": 0.3}}, AdaptiveProjectedGuidance(5.0, eta=0.3)),
    "slg": (
        {"method": "slg", "slg": SLG, "rescale": 0.2},
        # with skip_layer_guidance_layers, diffusers' pipelines fail
        SkipLayerGuidance(
            5.0, 1.5, 0.0, 0.7, skip_layer_config=LayerSkipConfig([2, 4], "blocks"), guidance_rescale=0.2
        ),
    ),
}


def guidance(**settings: Any) -> Any:
    return build_config({"guidance": settings}).guidance


def predictions(step: int) -> Predictions:
    cond, uncond, sub = torch.randn(3, 2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(step))
    return Predictions(cond, uncond, (sub,))


def run_guider(guider: Any, step: int) -> Tensor:
    """Call the guider as a modular pipeline does: prepare the inputs that it asks for, then run it."""
    made = predictions(step)
    named = {"pred_cond": made.cond, "pred_uncond": made.uncond, "pred_cond_skip": made.subs[0]}
    guider.set_state(step=step, num_inference_steps=NUM_STEPS, timestep=torch.tensor(500))
    batches = guider.prepare_inputs({"x": (torch.zeros(1), torch.zeros(1))})
    for batch in batches:
        batch.noise_pred = named[getattr(batch, guider._identifier_key)]
    pred: Tensor = guider(batches).pred
    return pred


@pytest.mark.parametrize("name", GUIDERS)
def test_it_is_what_the_guider_makes(name: str) -> None:
    settings, guider = GUIDERS[name]
    other = OtherGuidance(guidance(**settings), NUM_STEPS)
    for step in range(NUM_STEPS):
        made = predictions(step)
        got = other.combine(made._replace(subs=made.subs if other.masks(step) else ()), step)
        assert torch.equal(got, run_guider(guider, step)), step


@pytest.mark.parametrize("name", GUIDERS)
def test_a_step_may_have_a_scale_of_its_own(name: str) -> None:
    """This serves two transformers with different λ."""
    overridden, configured = (OtherGuidance(guidance(**GUIDERS[name][0], cfg_scale=x), NUM_STEPS) for x in (7.0, 2.0))
    for step in range(NUM_STEPS):
        made = predictions(step)
        made = made._replace(subs=made.subs if overridden.masks(step) else ())
        assert torch.equal(overridden.combine(made, step, cfg_scale=2.0), configured.combine(made, step))


def test_momentum_is_of_one_run_and_outlasts_its_interruption() -> None:
    config = guidance(**GUIDERS["apg"][0])
    whole = [OtherGuidance(config, NUM_STEPS) for _ in range(2)]
    expected = [[other.combine(predictions(step), step) for step in range(NUM_STEPS)] for other in whole]
    assert all(map(torch.equal, *expected))
    before, after = OtherGuidance(config, NUM_STEPS), None
    for step in range(NUM_STEPS):
        if step == 3:
            after = OtherGuidance(config, NUM_STEPS)
            after.load_state(before.state())
        assert torch.equal((after or before).combine(predictions(step), step), expected[0][step])
    assert not torch.equal(OtherGuidance(config, NUM_STEPS).combine(predictions(3), 3), expected[0][3])


def test_skip_layer_guidance_by_hand() -> None:
    """It has λ and its own scale in its window, and is CFG elsewhere and always in the first step."""
    other = OtherGuidance(guidance(method="slg", slg=SLG), NUM_STEPS)
    assert [step for step in range(NUM_STEPS) if other.masks(step)] == [1, 2, 3]
    assert other.masks(1) == ((2, 4),)
    cond, uncond, (sub,) = predictions(1)
    cfg = uncond + 5 * (cond - uncond)
    torch.testing.assert_close(other.combine(Predictions(cond, uncond, (sub,)), 1), cfg + 1.5 * (cond - sub))
    torch.testing.assert_close(other.combine(Predictions(cond, uncond), 5), cfg)


@pytest.mark.parametrize("name", GUIDERS)
def test_without_uncond(name: str) -> None:
    """λ = 1: CFG-Zero* keeps its zeros, APG is cond, SLG goes from sub to cond and beyond."""
    other = OtherGuidance(guidance(**{**GUIDERS[name][0], "cfg_scale": 1.0, "rescale": 0.0}), NUM_STEPS)
    cond, _, (sub,) = predictions(1)
    got = other.combine(Predictions(cond, None, (sub,) if other.masks(1) else ()), 1)
    expected = {"cfg-zero-star": torch.zeros_like(cond), "slg": sub + 1.5 * (cond - sub)}.get(name, cond)
    torch.testing.assert_close(got, expected)


@pytest.fixture(scope="module")
def modular(tiny_checkpoint: Path) -> Any:
    classic = WanPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    pipe = WanBlocks().init_pipeline()
    names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe.update_components(**{name: classic.components[name] for name in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine(tiny_config(tiny_checkpoint), progress="none")


@pytest.mark.parametrize("name", GUIDERS)
def test_the_engine_makes_what_a_pipeline_with_that_guider_makes(modular: Any, engine: Engine, name: str) -> None:
    settings, guider = GUIDERS[name]
    modular.update_components(guider=guider)
    expected = modular(
        prompt=PROMPT,
        negative_prompt="",
        num_inference_steps=NUM_STEPS,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=torch.Generator().manual_seed(7),
        output="latents",
        **SIZE,
    )
    got = engine.with_guidance(**settings).sample([PROMPT], [7])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (got - engine.with_guidance(s2_scale=0.0).sample([PROMPT], [7])).abs().max() > 1e-3


def test_the_prefix_of_its_pass_is_shared(engine: Engine) -> None:
    settings = GUIDERS["slg"][0]
    shared, whole = (
        engine.with_guidance(**settings, share_prefix=share).sample([PROMPT], [7]) for share in (True, False)
    )
    assert torch.equal(shared, whole)


def test_no_masks_are_drawn(engine: Engine) -> None:
    """Other methods draw no masks: a batch of several seeds needs no mask seed, and the sidecar lists none."""
    other = engine.with_guidance(method="apg")
    assert other.sample([PROMPT] * 2, [7, 8]).shape[0] == 2
    facts = job_facts(other.config, images=[], masks=other.mask_schedule([7]))
    assert facts["masks"] == []

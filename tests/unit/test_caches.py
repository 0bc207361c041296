"""Tests of diffusers' caches in enabled pipelines: cond and uncond as without S², sub without the cache."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import apply_first_block_cache, apply_taylorseer_cache
from tiny_pipelines import build_hunyuan_video_15, wan
from torch import Tensor, nn

import s2video
from s2video.errors import InputError
from s2video.guidance.equations import Predictions
from s2video.integrations.control import Control

STEPS = 6
SEPARATE: dict[str, Callable[[Any], Any]] = {  # one state for each context
    "first-block": lambda pipe: FirstBlockCacheConfig(threshold=0.8),
    "taylorseer": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, cache_identifiers=[r"blocks\.\d+\.attn1"]
    ),
    "mag": lambda pipe: MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS, retention_ratio=0.2),
    "sea": lambda pipe: SeaCacheConfig(
        threshold=9.0, raw_vision_callback=lambda module, a, k: list(k["hidden_states"])
    ),
}
SHARED: dict[str, Callable[[Any], Any]] = {  # one state for all calls
    "faster": lambda pipe: FasterCacheConfig(
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe.current_timestep,
        spatial_attention_timestep_skip_range=(-1, 900),
        attention_weight_callback=lambda module: 0.5,
        spatial_attention_block_identifiers=("blocks.*attn1",),
    ),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        current_timestep_callback=lambda: pipe.current_timestep,
        spatial_attention_block_identifiers=("blocks.*attn1",),
    ),
}
CACHES = SEPARATE | SHARED


def run(pipe: Any, arguments: dict[str, Any]) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    done = pipe(**arguments, num_inference_steps=STEPS, output_type="latent", generator=generator, return_dict=False)
    latents: Tensor = done[0]
    return latents


def run_cached(pipe: Any, arguments: dict[str, Any], cache: str | None, **settings: Any) -> Tensor:
    """Make a video with a fresh cache, and with S² if there are settings."""
    if cache is not None:
        pipe.transformer.enable_cache(CACHES[cache](pipe))
    if settings:
        s2video.enable(pipe, mask_seed=5, drop_ratio=0.3, window=(0, 1), **settings)
    latents = run(pipe, arguments)
    s2video.disable(pipe)
    if cache is not None:
        pipe.transformer.disable_cache()
    return latents


@pytest.fixture
def pipe_and_arguments(tiny_checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    return wan(tiny_checkpoint)


@pytest.mark.parametrize("cache", SEPARATE)
def test_cond_and_uncond_are_as_without_s2(pipe_and_arguments: tuple[Any, dict[str, Any]], cache: str) -> None:
    """With a strength that changes no bit, the video is that of the cache alone, and the cache does act."""
    pipe, arguments = pipe_and_arguments
    cached = run_cached(pipe, arguments, cache)
    assert torch.equal(run_cached(pipe, arguments, cache, s2_scale=1e-30), cached)
    assert not torch.equal(cached, run_cached(pipe, arguments, None))


@pytest.mark.parametrize("cache", SHARED)
def test_each_branch_has_its_own_attention(pipe_and_arguments: tuple[Any, dict[str, Any]], cache: str) -> None:
    """Without S², these caches have one state for all calls, so that uncond gets what cond left."""
    pipe, arguments = pipe_and_arguments
    computed: Counter[Any] = Counter()
    cached = run_cached(pipe, arguments, cache)
    attention = pipe.transformer.blocks[2].attn1

    def count(*_: Any) -> None:
        computed[pipe.transformer.__dict__["_s2video"].context] += 1

    pipe.transformer.enable_cache(CACHES[cache](pipe))
    s2video.enable(pipe, s2_scale=1e-30, drop_count=1, band=(2, 2))  # no sub prediction computes this block
    handle = attention.to_q.register_forward_hook(count)
    assert not torch.equal(run(pipe, arguments), cached)
    handle.remove()
    assert computed["cond"] == computed["uncond"] == (STEPS // 2 if cache == "pyramid" else computed["cond"]) < STEPS


@pytest.mark.parametrize("cache", CACHES)
def test_sub_is_computed_without_the_cache(
    pipe_and_arguments: tuple[Any, dict[str, Any]], cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one is bitwise that of a copy without a cache and without the dropped blocks."""
    pipe, arguments = pipe_and_arguments
    plain = copy.deepcopy(pipe.transformer)
    seen: list[tuple[dict[str, Any], Sequence[Sequence[int]], Predictions]] = []
    computed = Control._computed

    def watched(self: Control, transformer: Any, call: Any, masks: Any) -> Any:
        output, predictions = computed(self, transformer, call, masks)
        seen.append((call.keywords, masks, predictions))
        return output, predictions

    monkeypatch.setattr(Control, "_computed", watched)
    run_cached(pipe, arguments, cache, s2_scale=0.4, num_draws=2)
    assert len(seen) == STEPS
    for keywords, masks, predictions in seen:
        for mask, sub in zip(masks, predictions.subs, strict=True):
            without = copy.copy(plain)
            without._modules = dict(plain._modules)
            without.blocks = nn.ModuleList(block for i, block in enumerate(plain.blocks) if i not in mask)
            with torch.no_grad():
                assert torch.equal(without(**{**keywords, "return_dict": False})[0], sub)


def test_nothing_is_left_behind(pipe_and_arguments: tuple[Any, dict[str, Any]]) -> None:
    """After an interruption within a sub prediction, the cache answers again, and its states are its own."""
    pipe, arguments = pipe_and_arguments
    pipe.transformer.enable_cache(CACHES["pyramid"](pipe))
    expected = run(pipe, arguments)
    hook = pipe.transformer.blocks[2].attn1._diffusers_hook.hooks["pyramid_attention_broadcast"]
    state, reference = hook.state, dict(vars(hook.fn_ref))
    s2video.enable(pipe, window=(0, 1))
    calls = 0

    def fails(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    last = pipe.transformer.blocks[0].register_forward_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, arguments)
    last.remove()
    assert hook.state is state and vars(hook.fn_ref) == reference
    s2video.disable(pipe)
    pipe.transformer._reset_stateful_cache()
    assert torch.equal(run(pipe, arguments), expected)


def test_what_cannot_work_is_refused(pipe_and_arguments: tuple[Any, dict[str, Any]], tiny_checkpoint: Path) -> None:
    pipe, arguments = pipe_and_arguments
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    s2video.enable(pipe, reuse="deviation")
    with pytest.raises(InputError, match=r"expected reuse exact or deviation .* got FBC\w+Hook, which counts"):
        s2video.enable(pipe, reuse="light")
    other, _ = wan(tiny_checkpoint)
    s2video.enable(other)
    other.transformer.enable_cache(FasterCacheConfig(current_timestep_callback=lambda: 500))
    with pytest.raises(InputError, match=r"FasterCacheConfig\(is_guidance_distilled=True\), got False"):
        run(other, arguments)


def test_a_guider_refuses_caches() -> None:
    """It does not make the calls of the model, so it cannot turn the cache off for some of them."""
    pipe, arguments = build_hunyuan_video_15()
    pipe.guider = s2video.S2Guidance(5.0, start=0.0, stop=1.0)
    apply_taylorseer_cache(
        pipe.transformer, TaylorSeerCacheConfig(cache_identifiers=[r"transformer_blocks\.\d+\.attn"])
    )
    with pytest.raises(InputError, match=r"S2Guidance: expected no step cache, got TaylorSeerCacheHook"):
        run(pipe, arguments)

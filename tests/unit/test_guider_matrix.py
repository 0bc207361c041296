"""`S2Guidance` in modular pipelines: to the bit the video of a guider whose sub predictions come from copies."""

from typing import Any

import pytest
import torch
from diffusers.guiders import LTX2Guidance
from diffusers.guiders.guider_utils import GuiderOutput
from test_plugin_matrix import without_blocks
from tiny_guided import GUIDED, Guided
from tiny_matrix import MINIATURES, Miniature
from tiny_models import WAN_BLOCKS
from torch import Tensor, nn

import s2video
from s2video.errors import InputError
from s2video.models.noise_levels import noise_levels

DROPPED = {"drop_count": 2, "never_drop": (0, 1, 3, 5), "start": 0.0, "stop": 1.0}


class Copies(s2video.S2Guidance):
    """The same equation, with the sub prediction of a copy in which the dropped blocks do nothing."""

    shortened: nn.Module

    def prepare_models(self, denoiser: nn.Module) -> None:
        self._count_prepared += 1
        names = self._names()
        if self._count_prepared <= len(names) and names[self._count_prepared - 1].startswith("pred_sub"):
            denoiser.__dict__["forward"] = self.shortened.forward

    def cleanup_models(self, denoiser: nn.Module) -> None:
        denoiser.__dict__.pop("forward", None)


def run(row: Guided, pipe: Any, arguments: dict[str, Any], guider: s2video.S2Guidance) -> Tensor:
    guiders = {"guider": guider}
    if row.second is not None:
        guiders[row.second] = guider.new()
    pipe.register_modules(**guiders) if row.blocks is None else pipe.update_components(**guiders)
    made = pipe(**arguments, generator=torch.Generator().manual_seed(7))
    if row.blocks is None:
        made = made.frames
    return torch.stack(made) if isinstance(made, list) else made


@pytest.mark.parametrize("name", GUIDED)
def test_the_guider_is_equation_4(name: str) -> None:
    row = GUIDED[name]
    pipe, arguments = row.build()
    assert type(pipe).__name__ == name
    transformer = pipe.transformer
    matrix = Miniature(row.build, WAN_BLOCKS) if callable(row.parts) else MINIATURES[row.parts]
    Copies.shortened = without_blocks(matrix, transformer)
    expected = run(row, pipe, arguments, Copies(4.0, s2_scale=0.4, **DROPPED))
    before = [type(transformer), *transformer.__dict__], [module for module, _ in transformer.named_modules()]
    made = run(row, pipe, arguments, s2video.S2Guidance(4.0, s2_scale=0.4, **DROPPED))
    assert torch.equal(made, expected)
    assert ([type(transformer), *transformer.__dict__], [module for module, _ in transformer.named_modules()]) == before
    assert not torch.equal(made, run(row, pipe, arguments, s2video.S2Guidance(4.0, s2_scale=0.0)))


def test_the_sound_of_ltx_2_can_have_its_own_guidance() -> None:
    """Its passes (STG, isolated modalities) are made next to those of S²."""
    row = GUIDED["LTX2ModularPipeline"]
    pipe, arguments = row.build()
    Copies.shortened = without_blocks(MINIATURES["LTX2Pipeline"], pipe.transformer)
    contexts: set[str] = set()
    made = []
    for kind in (Copies, s2video.S2Guidance):
        guider = kind(4.0, s2_scale=0.4, **DROPPED)
        guider.spatio_temporal_guidance_blocks = [3]
        pipe.update_components(guider=guider, audio_guider=LTX2Guidance(guidance_scale=3.0, stg_scale=1.0))
        named = pipe.transformer.cache_context
        pipe.transformer.cache_context = lambda name, named=named: contexts.add(name) or named(name)
        both = {**arguments, "output": ["latents", "audio_latents"]}
        made.append(pipe(**both, generator=torch.Generator().manual_seed(7)))
        del pipe.transformer.cache_context
    assert {"pred_cond", "pred_uncond", "pred_sub_0", "pred_cond_stg"} <= contexts
    for name in ("latents", "audio_latents"):
        assert torch.equal(made[0][name], made[1][name])


class ByHand(Copies):
    """Reuse "fast", by hand: every step makes all predictions, and forecasts replace those that are not due."""

    num_saved = 0
    _last: int | None = None

    def _names(self) -> list[str]:
        return ["pred_cond", "pred_uncond", "pred_sub_0"]

    def forward(self, pred_cond: Tensor | None = None, pred_uncond: Tensor | None = None, **subs: Tensor) -> Any:
        assert pred_cond is not None and pred_uncond is not None and self._step is not None
        step, part = self._step, (self._step + 0.5) / (self._num_inference_steps or 1)
        if self._last is None or step <= self._last:
            self._points: list[tuple[int, float, Tensor, Tensor]] = []
            self._deviation: tuple[int, Tensor] | None = None
        self._last, level, acts = step, noise_levels(self.scheduler)[step], part <= 0.5
        cond, uncond = pred_cond.float(), pred_uncond.float()
        is_due = part < 0.2 or len(self._points) < 2 or step - self._points[-1][0] >= 2
        is_due = is_due or (acts and self._deviation is None)
        if is_due:
            self._points.append((step, level, cond, cond - uncond))
        else:
            ByHand.num_saved += 2
            (_, older, *before), (_, newer, *last) = self._points[-2:]
            slope = (level - newer) / (newer - older)
            cond, difference = (b + slope * (b - a) for a, b in zip(before, last, strict=True))
            uncond = cond - difference
        pred = uncond + 3.0 * (cond - uncond)
        if acts and is_due and (self._deviation is None or step - self._deviation[0] >= 2):
            self._deviation = step, subs["pred_sub_0"].float() - cond
            pred = pred - 0.4 * self._deviation[1]
        else:
            ByHand.num_saved += 1
            if acts and self._deviation is not None:
                pred = pred - 0.4 * (cond + self._deviation[1] - cond)
        return GuiderOutput(pred=pred, pred_cond=cond, pred_uncond=uncond)


@pytest.mark.parametrize("name", GUIDED)
def test_with_reuse_a_pipeline_is_not_asked_for_what_is_forecast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps without any call, without uncond and without sub, to the bit those of a guider that computes all."""
    monkeypatch.setattr("s2video.integrations.guider_reuse.LEAST_STEPS", 5)
    row = GUIDED[name]
    pipe, arguments = row.build()
    guider = s2video.S2Guidance(3.0, s2_scale=0.4, reuse="fast", **DROPPED)
    guider.scheduler = pipe.scheduler
    if "num_inference_steps" not in arguments:
        with pytest.raises(InputError, match="expected at least 5 steps"):
            run(row, pipe, arguments, guider)
        return
    arguments["num_inference_steps"] = 5
    matrix = Miniature(row.build, WAN_BLOCKS) if callable(row.parts) else MINIATURES[row.parts]
    Copies.shortened, ByHand.num_saved = without_blocks(matrix, pipe.transformer), 0
    calls = [0]
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    by_hand = ByHand(3.0, s2_scale=0.4, **DROPPED)
    by_hand.scheduler = pipe.scheduler
    expected, num_all = run(row, pipe, arguments, by_hand), calls[0]
    num_saved, calls[0] = ByHand.num_saved, 0
    assert torch.equal(run(row, pipe, arguments, guider), expected)
    assert num_all - calls[0] == num_saved // (2 if row.second == "audio_guider" else 1) > 0

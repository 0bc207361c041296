"""`S2Guidance` in modular pipelines: to the bit the video of a guider whose sub predictions come from copies."""

from typing import Any

import pytest
import torch
from diffusers.guiders import LTX2Guidance
from test_plugin_matrix import without_blocks
from tiny_guided import GUIDED, Guided
from tiny_matrix import MINIATURES, Miniature
from tiny_models import WAN_BLOCKS
from torch import Tensor, nn

import s2video

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

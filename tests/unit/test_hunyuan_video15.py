"""Tests of HunyuanVideo 1.5's three kinds of text, each of its own length: equal to the module."""

from dataclasses import replace

import pytest
import torch
from tiny_hunyuan15 import CHANNELS, build_transformer, conditioning, forward
from torch import Tensor

from s2video.models.base import Conditioning
from s2video.models.hunyuan_video15.blocks import HunyuanVideo15BlockModel
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Mesh
from s2video.sampling.forward import predict

ALONE = Mesh(torch.device("cpu"))
TIMESTEP = torch.tensor([700.0, 700.0])
COND = conditioning(build_transformer(), 2)


@pytest.fixture(scope="module")
def model() -> HunyuanVideo15BlockModel:
    return HunyuanVideo15BlockModel(build_transformer())


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(2, 2 * CHANNELS + 1, 5, 5, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("has_image", [False, True])
@pytest.mark.parametrize(
    ("lengths", "glyphs"),
    [((12, 12), (8, 8)), ((1, 12), (0, 3)), ((4, 4), (0, 0))],
    ids=["full", "uneven", "no glyphs"],
)
def test_text_of_every_length(
    model: HunyuanVideo15BlockModel, latents: Tensor, has_image: bool, lengths: tuple[int, int], glyphs: tuple[int, int]
) -> None:
    cond = conditioning(model.transformer, 3, lengths, glyphs)
    if not has_image:
        cond = replace(cond, image=None)
    got = predict(model, latents, TIMESTEP, mesh=ALONE, cond=cond).cond
    torch.testing.assert_close(got, forward(build_transformer(), latents, TIMESTEP, cond), atol=1e-5, rtol=0)


def test_without_lengths_all_text_counts(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    every = replace(COND, text_lengths=(12, 12), text_2_lengths=(8, 8))
    a, b = (
        predict(model, latents, TIMESTEP, mesh=ALONE, cond=cond).cond
        for cond in (every, replace(COND, text_lengths=None, text_2_lengths=None))
    )
    assert torch.equal(a, b)


def test_in_bfloat16_too(latents: Tensor) -> None:
    model = HunyuanVideo15BlockModel(build_transformer().to(torch.bfloat16))
    got = predict(model, latents.to(torch.bfloat16), TIMESTEP, mesh=ALONE, cond=COND).cond
    expected = forward(build_transformer().to(torch.bfloat16), latents, TIMESTEP, COND)
    assert got.dtype == torch.bfloat16
    assert (
        got - expected
    ).float().norm() / expected.float().norm() < 0.01  # bfloat16 has 8 bits, so 0.4 % per rounding


def test_padding_is_never_seen(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    assert COND.text_2 is not None
    text, text_2 = COND.text.clone(), COND.text_2.clone()
    text[0, 5:], text[1, 9:], text_2[0, 6:], text_2[1] = 1e3, -1e3, 1e3, -1e3
    clean, dirty = (
        predict(model, latents, TIMESTEP, mesh=ALONE, cond=cond, masks=[(3,)])
        for cond in (COND, replace(COND, text=text, text_2=text_2))
    )
    assert torch.equal(clean.cond, dirty.cond) and torch.equal(clean.subs[0], dirty.subs[0])


def test_every_kind_of_text_is_seen(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    assert COND.text_2 is not None and COND.image is not None
    base = predict(model, latents, TIMESTEP, mesh=ALONE, cond=COND).cond

    def change(cond: Conditioning) -> Tensor:
        return (predict(model, latents, TIMESTEP, mesh=ALONE, cond=cond).cond - base).abs().amax((1, 2, 3, 4))

    assert change(replace(COND, text=-COND.text)).min() > 1e-4
    assert change(replace(COND, image=-COND.image)).min() > 1e-4
    first, second = change(replace(COND, text_2=-COND.text_2))
    assert first > 1e-4 and second == 0  # which has no glyphs


def test_states_are_never_written_to(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    plan = AttentionPlan.even(ALONE.sequence, model.num_tokens(latents))
    with torch.no_grad():
        context = model.prepare(latents, TIMESTEP, COND, plan)
        state = model.embed(latents, context)
        assert state.text is not None
        before = state.video.clone(), state.text.clone()
        after = model.run_block(2, state, context)
    assert torch.equal(state.video, before[0]) and torch.equal(state.text, before[1])
    assert after.text is not None
    assert not torch.equal(after.video, before[0]) and not torch.equal(after.text, before[1])

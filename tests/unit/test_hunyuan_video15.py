"""HunyuanVideo 1.5's three kinds of text, each with a length of its own, as its module takes them."""

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
TOLD = conditioning(build_transformer(), 2)


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
    told = conditioning(model.transformer, 3, lengths, glyphs)
    if not has_image:
        told = replace(told, image=None)
    got = predict(model, latents, TIMESTEP, mesh=ALONE, cond=told).cond
    torch.testing.assert_close(got, forward(build_transformer(), latents, TIMESTEP, told), atol=1e-5, rtol=0)


def test_without_lengths_all_text_counts(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    every = replace(TOLD, text_lengths=(12, 12), text_2_lengths=(8, 8))
    a, b = (
        predict(model, latents, TIMESTEP, mesh=ALONE, cond=told).cond
        for told in (every, replace(TOLD, text_lengths=None, text_2_lengths=None))
    )
    assert torch.equal(a, b)


def test_in_bfloat16_too(latents: Tensor) -> None:
    model = HunyuanVideo15BlockModel(build_transformer().to(torch.bfloat16))
    got = predict(model, latents.to(torch.bfloat16), TIMESTEP, mesh=ALONE, cond=TOLD).cond
    expected = forward(build_transformer().to(torch.bfloat16), latents, TIMESTEP, TOLD)
    assert got.dtype == torch.bfloat16
    assert (got - expected).float().norm() / expected.float().norm() < 0.01  # 8 bits: 0.4 % a rounding


def test_padding_is_never_seen(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    assert TOLD.text_2 is not None
    text, text_2 = TOLD.text.clone(), TOLD.text_2.clone()
    text[0, 5:], text[1, 9:], text_2[0, 6:], text_2[1] = 1e3, -1e3, 1e3, -1e3
    clean, dirty = (
        predict(model, latents, TIMESTEP, mesh=ALONE, cond=told, masks=[(3,)])
        for told in (TOLD, replace(TOLD, text=text, text_2=text_2))
    )
    assert torch.equal(clean.cond, dirty.cond) and torch.equal(clean.subs[0], dirty.subs[0])


def test_every_kind_of_text_is_seen(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    assert TOLD.text_2 is not None and TOLD.image is not None
    base = predict(model, latents, TIMESTEP, mesh=ALONE, cond=TOLD).cond

    def change(told: Conditioning) -> Tensor:
        return (predict(model, latents, TIMESTEP, mesh=ALONE, cond=told).cond - base).abs().amax((1, 2, 3, 4))

    assert change(replace(TOLD, text=-TOLD.text)).min() > 1e-4
    assert change(replace(TOLD, image=-TOLD.image)).min() > 1e-4
    first, second = change(replace(TOLD, text_2=-TOLD.text_2))
    assert first > 1e-4 and second == 0  # which has no glyphs


def test_states_are_never_written_to(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    plan = AttentionPlan.even(ALONE.sequence, model.num_tokens(latents))
    with torch.no_grad():
        context = model.prepare(latents, TIMESTEP, TOLD, plan)
        state = model.embed(latents, context)
        assert state.text is not None
        before = state.video.clone(), state.text.clone()
        after = model.run_block(2, state, context)
    assert torch.equal(state.video, before[0]) and torch.equal(state.text, before[1])
    assert after.text is not None
    assert not torch.equal(after.video, before[0]) and not torch.equal(after.text, before[1])

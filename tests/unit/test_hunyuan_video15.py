"""HunyuanVideo 1.5 block by block on one rank: the module's own forward, whatever is shared, dropped or batched."""

from dataclasses import replace

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel
from tiny_hunyuan15 import CHANNELS, GLYPH_DIM, IMAGE_DIM, NUM_BLOCKS, NUM_IMAGE, TEXT_DIM, build_transformer
from torch import Tensor, nn

from s2video.forward import predict
from s2video.models.base import Conditioning
from s2video.models.hunyuan_video15 import HunyuanVideo15BlockModel
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Mesh

ALONE = Mesh(torch.device("cpu"))
TIMESTEP = torch.tensor([700.0, 700.0])
NUM_TEXT, NUM_GLYPHS = 12, 8  # of which no prompt of `cond` needs more than 9 and 6


@pytest.fixture(scope="module")
def model() -> HunyuanVideo15BlockModel:
    return HunyuanVideo15BlockModel(build_transformer())


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(2, 2 * CHANNELS + 1, 5, 5, 7, generator=torch.Generator().manual_seed(1))


def conditioning(
    seed: int, lengths: tuple[int, int], glyphs: tuple[int, int], *, has_image: bool = False
) -> Conditioning:
    """Padding holds numbers too: nobody may look at them."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(2, NUM_TEXT, TEXT_DIM, generator=generator)
    text_2 = torch.randn(2, NUM_GLYPHS, GLYPH_DIM, generator=generator)
    image = torch.randn(2, NUM_IMAGE, IMAGE_DIM, generator=generator) if has_image else None
    return Conditioning(text, lengths, image=image, text_2=text_2, text_2_lengths=glyphs)


COND, UNCOND = conditioning(2, (5, 9), (6, 0)), conditioning(3, (2, 1), (0, 0))
WITH_IMAGE = conditioning(4, (5, 9), (0, 6), has_image=True)


def own_forward(transformer: HunyuanVideo15Transformer3DModel, latents: Tensor, told: Conditioning) -> Tensor:
    """As the pipelines call it, with all padding and masks, and features of zero where there is no image."""
    assert told.text_lengths is not None and told.text_2 is not None and told.text_2_lengths is not None
    dtype = transformer.dtype
    image = torch.zeros(2, NUM_IMAGE, IMAGE_DIM) if told.image is None else told.image
    return transformer(
        latents.to(dtype),
        TIMESTEP.to(dtype),
        told.text.to(dtype),
        (torch.arange(NUM_TEXT) < torch.tensor(told.text_lengths)[:, None]).to(dtype),
        encoder_hidden_states_2=told.text_2.to(dtype),
        encoder_attention_mask_2=(torch.arange(NUM_GLYPHS) < torch.tensor(told.text_2_lengths)[:, None]).to(dtype),
        image_embeds=image.to(dtype),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("cond", [COND, WITH_IMAGE, replace(COND, text_2_lengths=(8, 8), text_lengths=(12, 12))])
def test_block_model_is_the_module(model: HunyuanVideo15BlockModel, latents: Tensor, cond: Conditioning) -> None:
    """Padding trimmed here, masked there."""
    got = predict(model, latents, TIMESTEP, mesh=ALONE, cond=cond, uncond=UNCOND)
    reference = build_transformer()
    assert got.uncond is not None
    torch.testing.assert_close(got.cond, own_forward(reference, latents, cond), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.uncond, own_forward(reference, latents, UNCOND), atol=1e-5, rtol=0)
    assert (got.cond - got.uncond).abs().max() > 1e-2


def test_in_bfloat16_too(latents: Tensor) -> None:
    model = HunyuanVideo15BlockModel(build_transformer().to(torch.bfloat16))
    got = predict(model, latents.to(torch.bfloat16), TIMESTEP, mesh=ALONE, cond=WITH_IMAGE).cond
    expected = own_forward(build_transformer().to(torch.bfloat16), latents, WITH_IMAGE)
    assert got.dtype == torch.bfloat16
    assert (got - expected).float().norm() / expected.float().norm() < 0.01  # 8 bits: 0.4 % a rounding


def test_padding_is_never_seen(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    assert COND.text_2 is not None
    text, text_2 = COND.text.clone(), COND.text_2.clone()
    text[0, 5:], text[1, 9:], text_2[0, 6:], text_2[1] = 1e3, -1e3, 1e3, -1e3
    clean, dirty = (
        predict(model, latents, TIMESTEP, mesh=ALONE, cond=told, masks=[(3,)])
        for told in (COND, replace(COND, text=text, text_2=text_2))
    )
    assert torch.equal(clean.cond, dirty.cond) and torch.equal(clean.subs[0], dirty.subs[0])


def test_every_kind_of_text_is_seen(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    assert WITH_IMAGE.text_2 is not None and WITH_IMAGE.image is not None
    base = predict(model, latents, TIMESTEP, mesh=ALONE, cond=WITH_IMAGE).cond
    for changed in (
        replace(WITH_IMAGE, text=-WITH_IMAGE.text),
        replace(WITH_IMAGE, text_2=-WITH_IMAGE.text_2),
        replace(WITH_IMAGE, image=-WITH_IMAGE.image),
    ):
        other = predict(model, latents, TIMESTEP, mesh=ALONE, cond=changed).cond
        assert (other - base)[1].abs().max() > 1e-3  # the first sample has no glyphs


@pytest.mark.parametrize("mask", [*((i,) for i in range(NUM_BLOCKS)), (1, 3)])
def test_sub_is_the_network_without_those_blocks(
    model: HunyuanVideo15BlockModel, latents: Tensor, mask: tuple[int, ...]
) -> None:
    got = predict(model, latents, TIMESTEP, mesh=ALONE, cond=WITH_IMAGE, masks=[mask])
    recomputed = predict(model, latents, TIMESTEP, mesh=ALONE, cond=WITH_IMAGE, masks=[mask], share_prefix=False)
    assert torch.equal(got.subs[0], recomputed.subs[0]) and not torch.equal(got.subs[0], got.cond)
    shortened = build_transformer()
    blocks = shortened.transformer_blocks
    shortened.transformer_blocks = nn.ModuleList(b for i, b in enumerate(blocks) if i not in mask)
    torch.testing.assert_close(got.subs[0], own_forward(shortened, latents, WITH_IMAGE), atol=1e-5, rtol=0)


def test_batched_branches_of_different_text_lengths(model: HunyuanVideo15BlockModel, latents: Tensor) -> None:
    one_by_one, batched = (
        predict(
            model,
            latents,
            TIMESTEP,
            mesh=ALONE,
            cond=WITH_IMAGE,
            uncond=UNCOND,
            masks=[(1, 3)],
            batch_branches=batch_branches,
        )
        for batch_branches in (False, True)
    )
    torch.testing.assert_close(batched.cond, one_by_one.cond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.uncond, one_by_one.uncond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.subs[0], one_by_one.subs[0], atol=1e-5, rtol=0)


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

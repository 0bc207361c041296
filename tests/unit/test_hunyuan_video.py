"""Tests of HunyuanVideo block by block on one rank: equal to the module's forward, with sharing and dropping."""

from dataclasses import replace

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from tiny_hunyuan import NUM_BLOCKS, NUM_DUAL, NUM_SINGLE, POOLED_DIM, TEXT_DIM, build_transformer
from torch import Tensor, nn

from s2video.models.base import Conditioning
from s2video.models.hunyuan_video.blocks import HunyuanVideoBlockModel
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Mesh
from s2video.sampling.forward import Lockstep, predict

RECOMPUTED = Lockstep(share_prefix=False)

ALONE = Mesh(torch.device("cpu"))
TIMESTEP = torch.tensor([700.0, 700.0])
NUM_TEXT = 12  # of which no prompt of `cond` needs more than 9


@pytest.fixture(scope="module")
def model() -> HunyuanVideoBlockModel:
    return HunyuanVideoBlockModel(build_transformer())


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(2, 16, 5, 10, 14, generator=torch.Generator().manual_seed(1))


def conditioning(seed: int, lengths: tuple[int, int]) -> Conditioning:
    """The padding has random values, which must have no effect."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(2, NUM_TEXT, TEXT_DIM, generator=generator)
    return Conditioning(text, lengths, torch.randn(2, POOLED_DIM, generator=generator), guidance=6.0)


COND, UNCOND = conditioning(2, (5, 9)), conditioning(3, (2, 1))


def own_forward(transformer: HunyuanVideoTransformer3DModel, latents: Tensor, cond: Conditioning) -> Tensor:
    """Run the module as HunyuanVideoPipeline does, with all padding and a mask."""
    assert cond.text_lengths is not None and cond.pooled is not None and cond.guidance is not None
    dtype = transformer.dtype
    mask = torch.arange(NUM_TEXT) < torch.tensor(cond.text_lengths)[:, None]
    return transformer(
        latents.to(dtype),
        TIMESTEP,
        cond.text.to(dtype),
        mask.to(dtype),
        cond.pooled.to(dtype),
        torch.tensor([cond.guidance] * 2, dtype=dtype) * 1000.0,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("embeds", [True, False])
def test_block_model_is_the_module(latents: Tensor, embeds: bool) -> None:
    """We trim padding, the module masks it."""
    model = HunyuanVideoBlockModel(build_transformer(guidance_embeds=embeds))
    got = predict(model, latents, TIMESTEP, mesh=ALONE, cond=COND, uncond=UNCOND)
    reference = build_transformer(guidance_embeds=embeds)
    assert got.uncond is not None
    torch.testing.assert_close(got.cond, own_forward(reference, latents, COND), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.uncond, own_forward(reference, latents, UNCOND), atol=1e-5, rtol=0)
    assert (got.cond - got.uncond).abs().max() > 1e-2
    other = predict(model, latents, TIMESTEP, mesh=ALONE, cond=replace(COND, guidance=1.0)).cond
    assert torch.equal(got.cond, other) != embeds


def test_in_bfloat16_too(latents: Tensor) -> None:
    model = HunyuanVideoBlockModel(build_transformer().to(torch.bfloat16))
    got = predict(model, latents.to(torch.bfloat16), TIMESTEP, mesh=ALONE, cond=COND).cond
    expected = own_forward(build_transformer().to(torch.bfloat16), latents, COND)
    assert got.dtype == torch.bfloat16
    assert (
        got - expected
    ).float().norm() / expected.float().norm() < 0.01  # bfloat16 has 8 bits, so 0.4 % per rounding


def test_padding_is_never_seen(model: HunyuanVideoBlockModel, latents: Tensor) -> None:
    text = COND.text.clone()
    text[0, 5:], text[1, 9:] = 1e3, -1e3
    clean, dirty = (
        predict(model, latents, TIMESTEP, mesh=ALONE, cond=cond, masks=[(3,)])
        for cond in (COND, replace(COND, text=text))
    )
    assert torch.equal(clean.cond, dirty.cond) and torch.equal(clean.subs[0], dirty.subs[0])


def test_without_lengths_all_text_counts(model: HunyuanVideoBlockModel, latents: Tensor) -> None:
    every = replace(COND, text_lengths=(NUM_TEXT, NUM_TEXT))
    a, b = (
        predict(model, latents, TIMESTEP, mesh=ALONE, cond=cond).cond
        for cond in (every, replace(COND, text_lengths=None))
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize("mask", [*((i,) for i in range(NUM_BLOCKS)), (1, NUM_DUAL + 1)])
def test_sub_is_the_network_without_those_blocks(
    model: HunyuanVideoBlockModel, latents: Tensor, mask: tuple[int, ...]
) -> None:
    """Dual and single blocks are numbered together, and each can be skipped."""
    got = predict(model, latents, TIMESTEP, mesh=ALONE, cond=COND, masks=[mask])
    recomputed = predict(model, latents, TIMESTEP, mesh=ALONE, cond=COND, masks=[mask], lockstep=RECOMPUTED)
    assert torch.equal(got.subs[0], recomputed.subs[0]) and not torch.equal(got.subs[0], got.cond)
    shortened = build_transformer()
    dual, single = shortened.transformer_blocks, shortened.single_transformer_blocks
    shortened.transformer_blocks = nn.ModuleList(b for i, b in enumerate(dual) if i not in mask)
    shortened.single_transformer_blocks = nn.ModuleList(b for i, b in enumerate(single, NUM_DUAL) if i not in mask)
    torch.testing.assert_close(got.subs[0], own_forward(shortened, latents, COND), atol=1e-5, rtol=0)


def test_batched_branches_of_different_text_lengths(model: HunyuanVideoBlockModel, latents: Tensor) -> None:
    one_by_one, batched = (
        predict(
            model,
            latents,
            TIMESTEP,
            mesh=ALONE,
            cond=COND,
            uncond=UNCOND,
            masks=[(1, 3)],
            lockstep=Lockstep(batch_branches=batch_branches),
        )
        for batch_branches in (False, True)
    )
    torch.testing.assert_close(batched.cond, one_by_one.cond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.uncond, one_by_one.uncond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.subs[0], one_by_one.subs[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", [0, NUM_DUAL])
def test_states_are_never_written_to(model: HunyuanVideoBlockModel, latents: Tensor, index: int) -> None:
    plan = AttentionPlan.even(ALONE.sequence, model.num_tokens(latents))
    with torch.no_grad():
        context = model.prepare(latents, TIMESTEP, COND, plan)
        state = model.embed(latents, context)
        assert state.text is not None
        before = state.video.clone(), state.text.clone()
        after = model.run_block(index, state, context)
    assert torch.equal(state.video, before[0]) and torch.equal(state.text, before[1])
    assert after.text is not None
    assert not torch.equal(after.video, before[0]) and not torch.equal(after.text, before[1])


def test_all_blocks_are_one_list(model: HunyuanVideoBlockModel) -> None:
    assert model.num_blocks == NUM_DUAL + NUM_SINGLE == len(set(model.blocks))
    assert isinstance(model.blocks[NUM_DUAL - 1], type(model.transformer.transformer_blocks[0]))
    assert isinstance(model.blocks[NUM_DUAL], type(model.transformer.single_transformer_blocks[0]))

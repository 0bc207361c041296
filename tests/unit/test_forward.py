"""Tests of the block-by-block forward on one rank: it equals the module's, with sharing, dropping and batching."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from tiny import NUM_BLOCKS, build_transformer
from torch import Tensor

from s2video.models.base import BlockContext, Conditioning, TokenState
from s2video.models.checkpoint import Checkpoint
from s2video.models.loading import load_transformer
from s2video.models.wan.blocks import WanBlockModel
from s2video.parallel.attention import AttentionPlan
from s2video.parallel.mesh import Axis, Mesh
from s2video.sampling.forward import Lockstep, predict

RECOMPUTED = Lockstep(share_prefix=False)
BATCHED = Lockstep(batch_branches=True)

ALONE = Mesh(torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> WanBlockModel:
    return WanBlockModel(build_transformer())


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Conditioning, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 5, 10, 14, generator=generator)
    cond, uncond = (Conditioning(torch.randn(2, 32, 128, generator=generator)) for _ in range(2))
    return latents, torch.tensor([700, 700]), cond, uncond


def own_forward(transformer: WanTransformer3DModel, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return transformer(latents, timestep, text, return_dict=False)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_model_is_the_module_to_the_bit(
    tiny_checkpoint: Path, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning], dtype: torch.dtype
) -> None:
    """`reference` uses diffusers' processors and forward."""
    latents, timestep, cond, uncond = inputs
    reference = load_transformer(Checkpoint(tiny_checkpoint), dtype, torch.device("cpu"))
    model = WanBlockModel(load_transformer(Checkpoint(tiny_checkpoint), dtype, torch.device("cpu")))
    latents, cond, uncond = latents.to(dtype), Conditioning(cond.text.to(dtype)), Conditioning(uncond.text.to(dtype))
    got = predict(model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond)
    assert got.uncond is not None and got.cond.dtype == dtype
    assert torch.equal(got.cond, own_forward(reference, latents, timestep, cond.text))
    assert torch.equal(got.uncond, own_forward(reference, latents, timestep, uncond.text))
    assert not torch.equal(got.cond, got.uncond)


def test_bfloat16_keeps_norms_and_tables_in_float32(tiny_checkpoint: Path) -> None:
    transformer = load_transformer(Checkpoint(tiny_checkpoint), torch.bfloat16, torch.device("cpu"))
    kept = {n for n, p in transformer.named_parameters() if p.dtype == torch.float32}
    assert "scale_shift_table" in kept and "blocks.0.norm2.weight" in kept
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def test_bfloat16_is_close_to_float32(
    tiny_checkpoint: Path, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning]
) -> None:
    latents, timestep, cond, _ = inputs
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = WanBlockModel(load_transformer(Checkpoint(tiny_checkpoint), dtype, torch.device("cpu")))
        text = Conditioning(cond.text.to(dtype))
        outputs.append(predict(model, latents.to(dtype), timestep, mesh=ALONE, cond=text, masks=[(2,)]))
    for wide, narrow in zip((outputs[0].cond, *outputs[0].subs), (outputs[1].cond, *outputs[1].subs), strict=True):
        error = (narrow.float() - wide).norm() / wide.norm()
        assert 1e-5 < error < 0.02  # bfloat16 has 8 bits, so 0.4 % per rounding


@pytest.mark.parametrize("masks", [[(1,)], [(3, 5)], [(NUM_BLOCKS - 1,)], [(0, 2)], [(2, 4), (1, 3)], [(1,), (), (5,)]])
def test_shared_prefix_is_recomputed_prefix_to_the_bit(
    model: WanBlockModel, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning], masks: list[tuple[int, ...]]
) -> None:
    latents, timestep, cond, uncond = inputs
    shared = predict(model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=masks)
    recomputed = predict(
        model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=masks, lockstep=RECOMPUTED
    )
    assert torch.equal(shared.cond, recomputed.cond)
    assert shared.uncond is not None and recomputed.uncond is not None and torch.equal(shared.uncond, recomputed.uncond)
    for mask, a, b in zip(masks, shared.subs, recomputed.subs, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, shared.cond) == (not mask)  # only dropping nothing gives cond


def test_sub_is_the_network_without_those_blocks(
    model: WanBlockModel, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning]
) -> None:
    """Predictions equal diffusers' forward with a shorter block list."""
    latents, timestep, cond, _ = inputs
    got = predict(model, latents, timestep, mesh=ALONE, cond=cond, masks=[(1, 4)]).subs[0]
    shortened = build_transformer()
    shortened.blocks = torch.nn.ModuleList(b for i, b in enumerate(shortened.blocks) if i not in (1, 4))
    assert torch.equal(got, own_forward(shortened, latents, timestep, cond.text))


@pytest.mark.parametrize("index", range(NUM_BLOCKS))
def test_every_block_can_be_left_out(
    model: WanBlockModel, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning], index: int
) -> None:
    latents, timestep, cond, _ = inputs
    got = predict(model, latents, timestep, mesh=ALONE, cond=cond, masks=[(index,)])
    assert not torch.equal(got.cond, got.subs[0])
    assert torch.isfinite(got.subs[0]).all()


def test_batched_branches_agree_up_to_rounding(
    model: WanBlockModel, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning]
) -> None:
    latents, timestep, cond, uncond = inputs
    one_by_one = predict(model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[(2, 4)])
    batched = predict(model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[(2, 4)], lockstep=BATCHED)
    assert one_by_one.uncond is not None and batched.uncond is not None
    torch.testing.assert_close(batched.cond, one_by_one.cond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.uncond, one_by_one.uncond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.subs[0], one_by_one.subs[0], atol=1e-5, rtol=0)


class Recorder(WanBlockModel):
    """A model that records the blocks that run, in order."""

    def __init__(self) -> None:
        super().__init__(build_transformer())
        self.calls: list[int] = []

    def run_block(self, index: int, state: TokenState, context: BlockContext) -> TokenState:
        self.calls.append(index)
        return super().run_block(index, state, context)


def test_lockstep_order_and_cost(inputs: tuple[Tensor, Tensor, Conditioning, Conditioning]) -> None:
    """All branches run a block before the next one starts, and the shared prefix is computed once."""
    latents, timestep, cond, uncond = inputs
    recorder = Recorder()
    predict(recorder, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[(2, 4)])
    assert recorder.calls == [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5]
    recorder.calls.clear()
    predict(recorder, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[(2, 4)], lockstep=RECOMPUTED)
    assert recorder.calls == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5]


def test_states_are_never_written_to(
    model: WanBlockModel, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning]
) -> None:
    latents, timestep, cond, _ = inputs
    plan = AttentionPlan.even(ALONE.sequence, model.num_tokens(latents))
    context = model.prepare(latents, timestep, cond, plan)
    state = model.embed(latents, context)
    before = state.video.clone()
    after = model.run_block(0, state, context)
    assert torch.equal(state.video, before) and not torch.equal(after.video, before)


@pytest.mark.parametrize("index", [-1, NUM_BLOCKS])
def test_unknown_block_is_refused(
    model: WanBlockModel, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning], index: int
) -> None:
    latents, timestep, cond, _ = inputs
    with pytest.raises(ValueError, match=f"0 … {NUM_BLOCKS - 1}, got {index}"):
        predict(model, latents, timestep, mesh=ALONE, cond=cond, masks=[(index,)])


def test_a_branch_axis_needs_uncond(
    model: WanBlockModel, inputs: tuple[Tensor, Tensor, Conditioning, Conditioning]
) -> None:
    latents, timestep, cond, _ = inputs
    with pytest.raises(ValueError, match="half of the ranks run uncond"):
        predict(model, latents, timestep, mesh=replace(ALONE, branch=Axis("branch", 2)), cond=cond)


def test_changing_masks_do_not_recompile(inputs: tuple[Tensor, Tensor, Conditioning, Conditioning]) -> None:
    """Blocks are compiled once, since they depend on neither mask nor branch."""
    latents, timestep, cond, uncond = inputs
    model = WanBlockModel(build_transformer())
    expected = [
        predict(model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[m]) for m in [(1,), (2, 5)]
    ]
    torch._dynamo.reset()
    for block in model.transformer.blocks:
        block.compile(backend="eager", fullgraph=True)
    got = [predict(model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[(1,)])]
    with torch._dynamo.config.patch(error_on_recompile=True):
        got.append(predict(model, latents, timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[(2, 5)]))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.subs[0], b.subs[0], atol=1e-5, rtol=0)

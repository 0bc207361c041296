"""Tests of families on one rank: latents and predictions equal diffusers', the shared prefix, each block skipped."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from families import FAMILIES, TinyFamily
from torch import Tensor, nn

from s2video.engine.engine import Engine
from s2video.models.base import BlockModel
from s2video.models.checkpoint import Checkpoint
from s2video.models.loading import load_transformer
from s2video.parallel.mesh import Mesh
from s2video.sampling.forward import Lockstep, predict

RECOMPUTED = Lockstep(share_prefix=False)
BATCHED = Lockstep(batch_branches=True)

ALONE = Mesh(torch.device("cpu"))
PROMPT, NEGATIVE = "a small red circle moving left on a gray background", "blue, large"


class Part(NamedTuple):
    """One transformer of a checkpoint, as ours and as diffusers'."""

    family: TinyFamily
    model: BlockModel
    build: Callable[[], nn.Module]
    block_lists: tuple[str, ...]

    def latents(self) -> Tensor:
        config = self.build().config
        channels = config.in_channels + config.get("vace_in_channels", 0)
        return torch.randn(2, channels, *self.family.latent_shape, generator=torch.Generator().manual_seed(1))

    @property
    def timestep(self) -> Tensor:
        return torch.tensor([self.family.timestep] * 2)

    def check(self, got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, atol=self.family.tolerance, rtol=0)


@pytest.fixture(scope="module", params=FAMILIES)
def part(request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Path]) -> Part:
    folder = checkpoint_of(request.param)
    family = Checkpoint(folder).family

    def build() -> nn.Module:
        model: nn.Module = load_transformer(Checkpoint(folder), torch.float32, ALONE.device)
        return model

    return Part(FAMILIES[request.param], family.block_model(build(), None), build, family.block_lists)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_s2_it_is_the_pipeline(checkpoint_of: Callable[[str], Path], name: str) -> None:
    family, folder = FAMILIES[name], checkpoint_of(name)
    for cfg_scale in (3.0, 1.0) if family.has_uncond else (1.0,):
        config = family.config(folder, s2_scale=0.0, cfg_scale=cfg_scale)
        got = Engine(config).sample([PROMPT], [3], negative_prompt=NEGATIVE, images=family.images)
        expected = family.reference(folder, config, PROMPT, NEGATIVE, 3)
        assert got.isfinite().all() and got.std() > 0.1
        torch.testing.assert_close(got, expected, atol=family.tolerance, rtol=0)


def test_block_model_is_the_module(part: Part) -> None:
    reference, latents = part.build(), part.latents()
    cond, uncond = (part.family.conditioning(reference, seed) for seed in (2, 3))
    got = predict(part.model, latents, part.timestep, mesh=ALONE, cond=cond, uncond=uncond)
    assert got.uncond is not None
    part.check(got.cond, part.family.forward(reference, latents, part.timestep, cond))
    part.check(got.uncond, part.family.forward(reference, latents, part.timestep, uncond))
    assert (got.cond - got.uncond).abs().max() > 1e-2


def test_every_block_can_be_left_out_alone(part: Part) -> None:
    """Sub equals the module without that block; shared and recomputed prefix are bitwise equal."""
    latents, cond = part.latents(), part.family.conditioning(part.build(), 2)
    masks = [(index,) for index in range(part.model.num_blocks)]
    shared, recomputed = (
        predict(part.model, latents, part.timestep, mesh=ALONE, cond=cond, masks=masks, lockstep=lockstep)
        for lockstep in (None, RECOMPUTED)
    )
    positions = [(name, i) for name in part.block_lists for i in range(len(part.build().get_submodule(name)))]
    assert len(positions) == part.model.num_blocks
    for (name, i), sub, again in zip(positions, shared.subs, recomputed.subs, strict=True):
        assert torch.equal(sub, again) and not torch.equal(sub, shared.cond)
        shortened = part.build()
        part.family.leave_out(shortened, name, i)
        part.check(sub, part.family.forward(shortened, latents, part.timestep, cond))


def test_batched_branches_round_differently_at_most(part: Part) -> None:
    latents = part.latents()
    cond, uncond = (part.family.conditioning(part.build(), seed) for seed in (2, 3))
    one_by_one, batched = (
        predict(
            part.model, latents, part.timestep, mesh=ALONE, cond=cond, uncond=uncond, masks=[(1, 3)], lockstep=lockstep
        )
        for lockstep in (None, BATCHED)
    )
    torch.testing.assert_close(batched.cond, one_by_one.cond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.uncond, one_by_one.uncond, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.subs[0], one_by_one.subs[0], atol=1e-5, rtol=0)

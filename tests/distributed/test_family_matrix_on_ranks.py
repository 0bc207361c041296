"""Tests of families × worlds: 2 and 3 ranks make the same video as one, with any image conditioning."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from ranks import RankError, RankPool
from tiny_wan_i2v import KINDS, image

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.models.control import Pictures
from s2video.models.images import Images
from s2video.parallel.mesh import Mesh


def sample(mesh: Mesh | None, config: RunConfig, images: Pictures | None) -> torch.Tensor:
    prompts = ["a small red circle moving left on a gray background", "blue"]
    return Engine(config, mesh).sample(prompts, [3, 4], negative_prompt="large", mask_seed=1, images=images)


@pytest.fixture(scope="module")
def alone(checkpoint_of: Callable[[str], Path]) -> Callable[[str], torch.Tensor]:
    made: dict[str, torch.Tensor] = {}

    def make(name: str) -> torch.Tensor:
        if name not in made:
            made[name] = sample(None, FAMILIES[name].config(checkpoint_of(name)), FAMILIES[name].images)
        return made[name]

    return make


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_worlds_agree(
    ranks: Callable[[int], RankPool],
    checkpoint_of: Callable[[str], Path],
    alone: Callable[[str], torch.Tensor],
    world_size: int,
    name: str,
) -> None:
    family = FAMILIES[name]
    together = ranks(world_size).run(sample, family.config(checkpoint_of(name)), family.images)
    for latents in together:
        torch.testing.assert_close(latents, alone(name), atol=1e-4, rtol=0)
        assert torch.equal(latents, together[0])


def sample_otherwise_on_rank_1(mesh: Mesh, config: RunConfig, images: Images, others: Images | None) -> torch.Tensor:
    return sample(mesh, config, others if mesh.world.rank == 1 else images)


@pytest.mark.parametrize("others", [Images(image(3)), None], ids=["another image", "none"])
def test_ranks_with_different_images_all_stop(
    ranks: Callable[[int], RankPool], checkpoint_of: Callable[[str], Path], others: Images | None
) -> None:
    kind = KINDS["wan2.2-i2v"]
    with pytest.raises(RankError) as caught:
        ranks(2).run(sample_otherwise_on_rank_1, kind.config(checkpoint_of("wan2.2-i2v")), kind.images, others)
    assert caught.value.kinds == ["AgreementError"] * 2
    assert all(message is not None and "images" in message for message in caught.value.messages)

"""Tests of Wan VACE on ranks, beyond the matrix: weights and hints on every axis, traffic, other control on a rank."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_vace
import torch
from ranks import RankError, RankPool, laid_out
from tiny import MAX_SEQUENCE_LENGTH, NUM_BLOCKS, PROMPT
from tiny_vace import CONTROL_CHANNELS, HINTS_AT, KINDS

from s2video.config.run import RunConfig
from s2video.engine.engine import Engine
from s2video.models.base import Conditioning
from s2video.models.control import Control
from s2video.models.registry import read_costs
from s2video.models.wan_vace.blocks import WanVaceBlockModel
from s2video.parallel.mesh import Mesh
from s2video.parallel.traffic import count_traffic
from s2video.planning.forecast import sent_bytes
from s2video.planning.step import Degrees, Step
from s2video.planning.work import SubWork
from s2video.sampling.forward import predict

Ranks = Callable[[int], RankPool]
KIND = KINDS["wan-vace"]
MASKS = ((4,), (2, 4), (2, 3))
NUM_TOKENS = 175
STEPS = 2


def sample(mesh: Mesh | None, config: RunConfig, control: Control | None, *degrees: Any) -> tuple[torch.Tensor, int]:
    """Return the latents, and how often weights were fetched."""
    mesh = laid_out(mesh, *degrees) if mesh is not None and degrees else mesh
    engine = Engine(config, mesh, progress="none")
    with count_traffic() as traffic:
        latents = engine.sample([PROMPT], [3], negative_prompt="large", images=control)
    return latents, traffic.calls["weights"]


@pytest.fixture(scope="module")
def config(checkpoint_of: Callable[[str], Path]) -> RunConfig:
    config = KIND.config(checkpoint_of("wan-vace"), num_draws=2, window=(0, 1))
    return config.patched({"sampling.num_inference_steps": STEPS})


@pytest.mark.parametrize(
    ("weights", "degrees", "changes"),
    [
        ("fsdp", (1, 2, 1), {}),
        ("fsdp", (1, 1, 2), {}),
        ("streamed", (2, 1, 1), {"guidance.batch_branches": True}),
        ("fsdp", (2, 1, 2), {"guidance.share_prefix": False}),
    ],
    ids=str,
)
def test_weights_of_control_are_fetched_with_the_blocks(
    ranks: Ranks, config: RunConfig, weights: str, degrees: tuple[int, int, int], changes: dict[str, Any]
) -> None:
    alone, _ = sample(None, config, KIND.control)
    world_size = degrees[0] * degrees[1] * degrees[2]
    apart = config.patched({"parallel.weights": weights, **changes})
    results = ranks(world_size).run(sample, apart, KIND.control, *degrees)
    for latents, fetches in results:
        torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
        assert torch.equal(latents, results[0][0])
        assert fetches == STEPS * (NUM_BLOCKS + len(HINTS_AT))


def one_step(mesh: Mesh, degrees: Degrees, masks: Any) -> dict[str, int]:
    text = Conditioning(torch.zeros(1, MAX_SEQUENCE_LENGTH, 128))
    with count_traffic() as traffic, torch.no_grad():
        predict(
            WanVaceBlockModel(tiny_vace.build_transformer()),
            torch.zeros(1, 16 + CONTROL_CHANNELS, 5, 10, 14),
            torch.tensor([500]),
            mesh=laid_out(mesh, *degrees),
            cond=text,
            uncond=text,
            masks=masks,
        )
    return dict(traffic.sent)


@pytest.mark.parametrize("degrees", [Degrees(1, 2, 1), Degrees(1, 1, 2), Degrees(2, 1, 2)], ids=str)
def test_predicted_bytes_are_those_sent(ranks: Ranks, degrees: Degrees) -> None:
    """With a branch axis, cond's ranks send their hints to sub's, after the first fork only."""
    model = read_costs({"_class_name": "WanVACETransformer3DModel", **tiny_vace.build_transformer().config})
    sub = SubWork.of_masks(MASKS, NUM_BLOCKS)
    step = Step(model, NUM_TOKENS, MAX_SEQUENCE_LENGTH, item_bytes=4, has_uncond=True, sub=sub)
    counted = ranks(degrees.world_size).run(one_step, degrees, MASKS)
    assert [Counter(sent) for sent in counted] == [
        Counter(sent_bytes(degrees, step, rank)) for rank in range(degrees.world_size)
    ]


def sample_otherwise_on_rank_1(mesh: Mesh, config: RunConfig, control: Control, other: Control | None) -> Any:
    return sample(mesh, config, other if mesh.world.rank == 1 else control)


@pytest.mark.parametrize("part", ["video", "mask", "references"])
def test_ranks_with_other_control_all_stop(ranks: Ranks, config: RunConfig, part: str) -> None:
    control = KIND.control
    assert control is not None
    other = control._replace(**{part: getattr(control, part)[::-1]})
    with pytest.raises(RankError) as caught:
        ranks(2).run(sample_otherwise_on_rank_1, config, control, other)
    assert caught.value.kinds == ["AgreementError"] * 2
    assert all(message is not None and "images" in message for message in caught.value.messages)

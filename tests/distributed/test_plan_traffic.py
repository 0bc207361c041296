"""What a plan says that ranks send is what they send, to the byte; and `parallel: auto` on real ranks."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, laid_out
from tiny import PROMPT, build_transformer, tiny_config

from s2video.config import RunConfig, build_config
from s2video.costs import SubWork, read_costs
from s2video.forecast import Degrees, Step, layouts, sent_bytes
from s2video.forward import predict
from s2video.models.base import Conditioning
from s2video.models.wan import WanBlockModel
from s2video.parallel.attention import AttentionPlan, sharded_joint_attention
from s2video.parallel.mesh import Mesh
from s2video.parallel.traffic import count_traffic
from s2video.pipeline import Engine
from s2video.plan import resolve_parallel

Ranks = Callable[[int], RankPool]
MASKS = ((4,), (2, 4), (2, 5))
NUM_TOKENS, NUM_TEXT = 175, 8


def one_step(mesh: Mesh, ring: int, ulysses: int, branch: Any, has_uncond: bool, masks: Any) -> dict[str, int]:
    latents, timestep = torch.zeros(1, 16, 5, 10, 14), torch.tensor([500])
    text = Conditioning(torch.zeros(1, NUM_TEXT, 128))
    model = WanBlockModel(build_transformer())
    with count_traffic() as traffic, torch.no_grad():
        predict(
            model,
            latents,
            timestep,
            mesh=laid_out(mesh, ring, ulysses, branch),
            cond=text,
            uncond=text if has_uncond else None,
            masks=masks,
        )
    return dict(traffic.sent)


@pytest.mark.parametrize("masks", [(), MASKS], ids=["outside the window", "three draws"])
@pytest.mark.parametrize(
    ("ring", "ulysses", "branch", "has_uncond"),
    [
        (1, 2, 1, True),
        (2, 1, 1, False),
        (1, 1, 2, True),
        (1, 3, 1, True),
        (3, 1, 1, True),
        (2, 2, 1, True),
        (1, 2, 2, True),
        (2, 1, 2, True),
    ],
)
def test_predicted_bytes_are_those_sent(
    ranks: Ranks, ring: int, ulysses: int, branch: int, has_uncond: bool, masks: tuple[tuple[int, ...], ...]
) -> None:
    """175 tokens and 5 heads divide by none of 2, 3 and 4."""
    degrees = Degrees(ring, ulysses, branch)
    model = read_costs({"_class_name": "WanTransformer3DModel", **build_transformer().config})
    sub = SubWork.of_masks(masks, model.num_blocks)
    step = Step(model, NUM_TOKENS, NUM_TEXT, item_bytes=4, has_uncond=has_uncond, sub=sub)
    counted = ranks(degrees.world_size).run(one_step, *degrees, has_uncond, masks)
    assert [Counter(sent) for sent in counted] == [
        Counter(sent_bytes(degrees, step, rank)) for rank in range(degrees.world_size)
    ]


def joint_layer(mesh: Mesh, ring: int, ulysses: int) -> dict[str, int]:
    plan = AttentionPlan.even(laid_out(mesh, ring, ulysses).sequence, NUM_TOKENS)
    video = [torch.zeros(1, plan.mine.length, 3, 8) for _ in range(3)]
    text = [torch.zeros(1, NUM_TEXT, 3, 8) for _ in range(3)]
    with count_traffic() as traffic:
        sharded_joint_attention(*video, *text, plan, backend=None)
    return dict(traffic.sent)


@pytest.mark.parametrize(("ring", "ulysses"), [(1, 2), (2, 1), (1, 3), (3, 1), (2, 2)])
def test_joint_attention_sends_what_is_predicted(ranks: Ranks, ring: int, ulysses: int) -> None:
    degrees = Degrees(ring, ulysses, 1)
    config = {"_class_name": "HunyuanVideoTransformer3DModel", "num_attention_heads": 3, "attention_head_dim": 8}
    model = read_costs(config)
    step = Step(model, NUM_TOKENS, NUM_TEXT, item_bytes=4, has_uncond=False, sub=SubWork((0.0,) * 60, 0, 0))
    layout = layouts(degrees, step)[0]
    for rank, sent in enumerate(ranks(degrees.world_size).run(joint_layer, ring, ulysses)):
        assert Counter(sent) == Counter(layout.block_bytes(rank, step))


def resolved_and_run(mesh: Mesh, config: RunConfig) -> tuple[RunConfig, torch.Tensor]:
    config = resolve_parallel(config, mesh.world.size)
    parallel = config.parallel
    assert parallel.ring is not None and parallel.ulysses is not None
    laid = laid_out(mesh, parallel.ring, parallel.ulysses, parallel.branch)
    return config, Engine(config, laid).sample([PROMPT], [3])


def test_auto_takes_one_mesh_on_every_rank(ranks: Ranks, tiny_checkpoint: Path) -> None:
    values = tiny_config(tiny_checkpoint).model_dump(mode="json")
    answers = ranks(2).run(resolved_and_run, build_config({**values, "parallel": "auto"}))
    config, latents = answers[0]
    parallel = config.parallel
    # cond beside uncond: that needs no exchange in any block
    assert (parallel.degrees, parallel.ring, parallel.ulysses, parallel.branch) == ("given", 1, 1, 2)
    alone = Engine(tiny_config(tiny_checkpoint)).sample([PROMPT], [3])
    torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
    assert answers[1][0] == config and torch.equal(answers[1][1], latents)

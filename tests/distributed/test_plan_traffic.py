"""Tests that a plan predicts the exact bytes that ranks send, and of `parallel: auto` on real ranks."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_hunyuan
import torch
from ranks import RankPool, laid_out
from tiny import PROMPT, tiny_config

from s2video.config.run import RunConfig, build_config
from s2video.engine.engine import Engine
from s2video.models.base import BlockModel, Conditioning
from s2video.models.checkpoint import open_checkpoint
from s2video.models.hunyuan_video.blocks import HunyuanVideoBlockModel
from s2video.models.registry import read_costs
from s2video.models.wan.blocks import WanBlockModel
from s2video.parallel.mesh import Mesh
from s2video.parallel.traffic import count_traffic
from s2video.planning.forecast import sent_bytes
from s2video.planning.plan import resolve_parallel
from s2video.planning.step import Degrees, Step
from s2video.planning.work import SubWork
from s2video.sampling.forward import predict

Ranks = Callable[[int], RankPool]
MASKS = ((4,), (2, 4), (2, 3))
NUM_TOKENS, NUM_TEXT = 175, 8


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], BlockModel], Conditioning]] = {
    "Wan": (tiny.build_transformer, WanBlockModel, Conditioning(torch.zeros(1, NUM_TEXT, 128))),
    "HunyuanVideo": (
        tiny_hunyuan.build_transformer,
        HunyuanVideoBlockModel,
        Conditioning(
            torch.zeros(1, NUM_TEXT, tiny_hunyuan.TEXT_DIM),
            pooled=torch.zeros(1, tiny_hunyuan.POOLED_DIM),
            guidance=6.0,
        ),
    ),
}


def one_step(mesh: Mesh, family: str, degrees: Degrees, has_uncond: bool, masks: Any) -> dict[str, int]:
    build, block_model, text = MODELS[family]
    with count_traffic() as traffic, torch.no_grad():
        predict(
            block_model(build()),
            torch.zeros(1, 16, 5, 10, 14),
            torch.tensor([500]),
            mesh=laid_out(mesh, *degrees),
            cond=text,
            uncond=text if has_uncond else None,
            masks=masks,
        )
    return dict(traffic.sent)


@pytest.mark.parametrize("masks", [(), MASKS], ids=["outside the window", "three draws"])
@pytest.mark.parametrize(
    ("degrees", "has_uncond"),
    [
        (Degrees(1, 2, 1), True),
        (Degrees(2, 1, 1), False),
        (Degrees(1, 1, 2), True),
        (Degrees(1, 3, 1), True),
        (Degrees(3, 1, 1), True),
        (Degrees(2, 2, 1), True),
        (Degrees(1, 2, 2), True),
        (Degrees(2, 1, 2), True),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", MODELS)
def test_predicted_bytes_are_those_sent(
    ranks: Ranks, family: str, degrees: Degrees, has_uncond: bool, masks: tuple[tuple[int, ...], ...]
) -> None:
    """175 tokens and 5 heads do not divide by 2, 3 or 4."""
    model = read_costs({"_class_name": f"{family}Transformer3DModel", **MODELS[family][0]().config})
    sub = SubWork.of_masks(masks, model.num_blocks)
    step = Step(model, NUM_TOKENS, NUM_TEXT, item_bytes=4, has_uncond=has_uncond, sub=sub)
    counted = ranks(degrees.world_size).run(one_step, family, degrees, has_uncond, masks)
    assert [Counter(sent) for sent in counted] == [
        Counter(sent_bytes(degrees, step, rank)) for rank in range(degrees.world_size)
    ]


def resolved_and_run(mesh: Mesh, config: RunConfig) -> tuple[RunConfig, torch.Tensor]:
    config = resolve_parallel(config, open_checkpoint(config.model.path), mesh.world.size)
    parallel = config.parallel
    assert parallel.ring is not None and parallel.ulysses is not None
    laid = laid_out(mesh, parallel.ring, parallel.ulysses, parallel.branch)
    return config, Engine(config, laid).sample([PROMPT], [3])


def test_auto_takes_one_mesh_on_every_rank(ranks: Ranks, tiny_checkpoint: Path) -> None:
    values = tiny_config(tiny_checkpoint).model_dump(mode="json")
    answers = ranks(2).run(resolved_and_run, build_config({**values, "parallel": "auto"}))
    config, latents = answers[0]
    parallel = config.parallel
    # cond parallel to uncond needs no exchange in any block
    assert (parallel.degrees, parallel.ring, parallel.ulysses, parallel.branch) == ("given", 1, 1, 2)
    alone = Engine(tiny_config(tiny_checkpoint)).sample([PROMPT], [3])
    torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
    assert answers[1][0] == config and torch.equal(answers[1][1], latents)

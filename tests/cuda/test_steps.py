"""Guided steps of every published kind of model, at its width and number of tokens, two blocks a list, in bfloat16."""

from typing import Any

import pytest
import torch
from fake_cuda.cases import ALLOWED_SYNCS, ALLOWED_UPLOADS, guided_steps, unexpected
from fake_cuda.device import fake_gpu
from fake_cuda.published import published_engine
from fake_cuda.ranks import fake_mesh

# one config of each kind of transformer
MODELS = (
    "wan2.1-t2v-1.3b-480p",
    "wan2.1-flf2v-14b-720p",
    "wan2.1-vace-14b-720p",
    "wan2.2-i2v-a14b",
    "wan2.2-ti2v-5b",
    "hunyuanvideo-720p",
    "hunyuanvideo-i2v-720p",
    "hunyuanvideo-1.5-t2v-480p",
    "hunyuanvideo-1.5-i2v-720p",
    "minimax-h3-768p",
)
MESHES: dict[str, dict[str, int]] = {
    "1": {},
    "ulysses 8": {"ulysses": 8},
    "2 x 4": {"ring": 2, "ulysses": 4},
}
BRANCHES = {"ring": 2, "ulysses": 2, "branch": 2}


def run_steps(model: str, degrees: dict[str, int], rank: int = 0, **changes: Any) -> None:
    """Run two guided steps and assert that nothing would go wrong or wait on a GPU."""
    with fake_mesh(rank, **degrees) as mesh, fake_gpu() as watchdog, published_engine(model, mesh, **changes) as engine:
        assert not watchdog.faults
        steps = guided_steps(engine)
        watchdog.clear()
        latents = steps()
        assert latents.device.type == "cuda" and latents.dtype == torch.float32
        assert not watchdog.faults, watchdog.faults
        assert not (found := unexpected(watchdog.syncs, ALLOWED_SYNCS)), found
        assert not (found := unexpected(watchdog.uploads, ALLOWED_UPLOADS)), found
        assert watchdog.syncs["item() at sampling/sampler.py:sample"] == 2


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_guided_steps(model: str, mesh: str) -> None:
    """The last rank, whose shards can be shorter."""
    degrees = MESHES[mesh]
    world_size = degrees.get("ring", 1) * degrees.get("ulysses", 1)
    run_steps(model, degrees, world_size - 1)

"""Fixtures that are dear to make, made once a session: tiny checkpoints, and pools of ranks."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ranks import RankPool


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import build_checkpoint

    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "wan")


@pytest.fixture(scope="session")
def tiny_hunyuan_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_hunyuan import build_checkpoint

    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "hunyuan")


@pytest.fixture(scope="session")
def tiny_hunyuan_image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_hunyuan import build_image_checkpoint

    return build_image_checkpoint(tmp_path_factory.mktemp("tiny") / "hunyuan-image")


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], RankPool]]:
    """`ranks(world_size)`: the session's pool of that size; one at a time, for two cores hold no more."""
    pools: dict[int, RankPool] = {}

    def get(world_size: int) -> RankPool:
        if world_size not in pools or not pools[world_size].alive:
            pools[world_size] = RankPool(world_size)
        return pools[world_size]

    yield get
    for pool in pools.values():
        pool.close()

"""Fixtures that are dear to make, made once a session: tiny checkpoints, and pools of ranks."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: programs that tests start would ignore it, too
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ranks import RankPool


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint_of(name)`: the folder of a family of `families.FAMILIES`, made when it is first asked for."""
    from families import FAMILIES

    root = tmp_path_factory.mktemp("tiny")

    @cache
    def build(name: str) -> Path:
        return FAMILIES[name].build_checkpoint(root / name)

    return build


@pytest.fixture(scope="session")
def tiny_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("wan")


@pytest.fixture(scope="session")
def tiny_hunyuan_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("hunyuan-video")


@pytest.fixture(scope="session")
def tiny_hunyuan_image_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("hunyuan-video-image")


@pytest.fixture(scope="session")
def tiny_hunyuan15_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("hunyuan-video-1.5")


@pytest.fixture(scope="session")
def tiny_hunyuan15_image_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("hunyuan-video-1.5-image")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`wide_wan.Wide`: a checkpoint whose tensors hold whole blocks of GGUF."""
    from wide_wan import build_wide

    return build_wide(tmp_path_factory.mktemp("wide") / "wan")


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

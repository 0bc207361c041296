"""The mesh of any rank in a world of any size, with torch's fake process group: no other rank is there.

A fake collective returns at once and fills nothing in. The watchdog checks that sizes on its own rank fit together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from s2video.config.sections import ParallelConfig
from s2video.parallel.mesh import Mesh, build_mesh

from .device import GPU


@contextmanager
def fake_mesh(rank: int = 0, **degrees: int) -> Iterator[Mesh]:
    """Yield the mesh of these degrees (ring, ulysses, branch) as this rank sees it. Enter it outside `fake_gpu`."""
    parallel = ParallelConfig(**{"ring": 1, "ulysses": 1, "branch": 1, **degrees})  # type: ignore[arg-type]
    assert parallel.ring is not None and parallel.ulysses is not None
    size = parallel.ring * parallel.ulysses * parallel.branch
    if size == 1:
        yield Mesh(GPU)
        return
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    gather, broadcast = dist.all_gather_object, dist.broadcast_object_list

    def all_gather_object(gathered: list[Any], value: Any, group: Any = None) -> None:
        gathered[:] = [value] * len(gathered)  # the others are taken to have the same

    def broadcast_object_list(values: list[Any], *_: Any, **__: Any) -> None:
        assert rank == 0, "what rank 0 would send is not there"

    dist.all_gather_object, dist.broadcast_object_list = all_gather_object, broadcast_object_list
    try:
        yield build_mesh(parallel, GPU)  # it computes with ranks, so their tensors cannot be fake
    finally:
        dist.all_gather_object, dist.broadcast_object_list = gather, broadcast
        dist.destroy_process_group()

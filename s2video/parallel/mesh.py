"""The ranks of one run, and the axes that they form.

A `Mesh` is made once and handed to whatever communicates; there are no global groups. One process without torchrun
is a mesh whose axes all have size 1, and takes the same code path. Knows no model.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ..config import ParallelConfig
from ..errors import InputError


@dataclass(frozen=True)
class Axis:
    """One dimension of the mesh: this rank's place among `size` ranks that share `group`."""

    name: str
    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Mesh:
    """All ranks of the run, and the `ulysses` axis that shards tokens and heads."""

    device: torch.device
    world: Axis = Axis("world")
    ulysses: Axis = Axis("ulysses")
    backend: str | None = None

    @property
    def is_main(self) -> bool:
        return self.world.rank == 0

    def describe(self) -> dict[str, int | str | None]:
        """What the sidecar says of the mesh."""
        return {
            "world_size": self.world.size,
            "ulysses": self.ulysses.size,
            "backend": self.backend,
            "device": self.device.type,
        }


def launched_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def resolve_degrees(parallel: ParallelConfig, world_size: int) -> dict[str, int]:
    """The size of every axis; their product must be the number of ranks.

    Raises:
        InputError: where it is not; the message names every factor.
    """
    ulysses = parallel.ulysses if parallel.ulysses is not None else world_size
    if ulysses != world_size:
        raise InputError(
            f"parallel: ulysses {ulysses} must equal the number of ranks, {world_size}; "
            f"start {ulysses} rank(s) (--nproc-per-node {ulysses}) or leave parallel.ulysses out"
        )
    return {"ulysses": ulysses}


def resolve_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means for this process; each rank of a host has a GPU of its own.

    Raises:
        InputError: CUDA asked for and absent, or more ranks than GPUs on this host.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("model.device: cuda was asked for, but torch sees no GPU; use cpu, or auto")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"--nproc-per-node: rank {local_rank} of this host has no GPU, there are {torch.cuda.device_count()}; "
            "start at most one rank a GPU"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def init_mesh(parallel: ParallelConfig, device: str = "auto") -> Iterator[Mesh]:
    """Join the run's process group, if torchrun started this process, and leave it at the end, also after an error.

    Args:
        device: as `resolve_device` takes it.

    Raises:
        InputError: a device that is not there, or degrees that do not fit.
    """
    target = resolve_device(device)
    if not launched_by_torchrun():
        resolve_degrees(parallel, 1)
        yield Mesh(target)
        return

    world_size = int(os.environ["WORLD_SIZE"])
    degrees = resolve_degrees(parallel, world_size)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    backend = parallel.backend if parallel.backend != "auto" else ("nccl" if target.type == "cuda" else "gloo")
    dist.init_process_group(
        backend,
        timeout=timedelta(seconds=parallel.timeout_seconds),
        device_id=target if backend == "nccl" else None,
    )
    try:
        device_mesh = init_device_mesh(target.type, tuple(degrees.values()), mesh_dim_names=tuple(degrees))
        yield Mesh(
            device=target,
            world=Axis("world", world_size, dist.get_rank(), dist.group.WORLD),
            ulysses=Axis(
                "ulysses", degrees["ulysses"], device_mesh.get_local_rank("ulysses"), device_mesh.get_group("ulysses")
            ),
            backend=backend,
        )
    finally:
        # a rank that leaves without this can abort, and torchrun then reports a finished job as failed
        dist.destroy_process_group()

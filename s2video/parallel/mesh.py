"""The ranks of one run, and the axes that they form.

A `Mesh` is made once and handed to whatever communicates; there are no global groups. One process without torchrun
is a mesh whose axes all have size 1, and takes the same code path. Knows no model.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ..config import ParallelConfig
from ..errors import AgreementError, InputError, S2VideoError
from .watch import Watch, connect


@dataclass(frozen=True)
class Axis:
    """One dimension of the mesh: this rank's place among `size` ranks that share `group`."""

    name: str
    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SequenceAxes:
    """The ranks that share one video's tokens: `ring` times `ulysses` of them.

    Attributes:
        ring: groups of ranks; each keeps its tokens' queries, keys and values go round. Across nodes.
        ulysses: the ranks of one group, which trade tokens for heads. Neighbours in rank, so inside a node.
        whole: both as one axis, ulysses varying fastest. Tokens are sharded over it and gathered over it.
    """

    ring: Axis = Axis("ring")
    ulysses: Axis = Axis("ulysses")
    whole: Axis = Axis("sequence")


@dataclass(frozen=True)
class Mesh:
    """All ranks of the run, the axes that shard tokens and heads, and this rank's watch over the others."""

    device: torch.device
    world: Axis = Axis("world")
    sequence: SequenceAxes = SequenceAxes()
    backend: str | None = None
    watch: Watch = field(default_factory=Watch, compare=False)

    @property
    def is_main(self) -> bool:
        return self.world.rank == 0

    def describe(self) -> dict[str, int | str | None]:
        """What the sidecar says of the mesh."""
        return {
            "world_size": self.world.size,
            "ring": self.sequence.ring.size,
            "ulysses": self.sequence.ulysses.size,
            "backend": self.backend,
            "device": self.device.type,
        }


def launched_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def resolve_degrees(parallel: ParallelConfig, world_size: int) -> dict[str, int]:
    """The size of every axis, slowest varying first; their product is the number of ranks.

    A degree left out is what the other one leaves of the ranks; without either, all of them are `ulysses`.

    Raises:
        InputError: where no such product is there; the message names every factor.
    """
    ring, ulysses = parallel.ring, parallel.ulysses
    given = {name: degree for name, degree in (("ring", ring), ("ulysses", ulysses)) if degree is not None}
    if ring is None:
        ring = world_size // ulysses if ulysses is not None else 1
    if ulysses is None:
        ulysses = world_size // ring
    if ring * ulysses != world_size:
        product = math.prod(given.values())
        said = " × ".join(f"{name} {degree}" for name, degree in given.items())
        fact = f"{said} = {product} must equal" if len(given) == 2 else f"{said} must divide"
        raise InputError(
            f"parallel: {fact} the number of ranks, {world_size}; "
            f"start {product} rank(s) (--nproc-per-node {product}) or leave {_keys(given)} out"
        )
    return {"ring": ring, "ulysses": ulysses}


def _keys(names: Iterable[str]) -> str:
    return " and ".join(f"parallel.{name}" for name in names)


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
        AgreementError: ranks that were told of different degrees.
        S2VideoError: other ranks that do not come.
    """
    target = resolve_device(device)
    if not launched_by_torchrun():
        resolve_degrees(parallel, 1)
        yield Mesh(target)
        return

    resolve_degrees(parallel, int(os.environ["WORLD_SIZE"]))  # before anybody waits for anybody
    if target.type == "cuda":
        torch.cuda.set_device(target)
    backend = parallel.backend if parallel.backend != "auto" else ("nccl" if target.type == "cuda" else "gloo")
    try:
        dist.init_process_group(
            backend,
            timeout=timedelta(seconds=parallel.timeout_seconds),
            device_id=target if backend == "nccl" else None,
        )
    except dist.DistError as error:
        raise S2VideoError(
            f"could not join the other ranks within {parallel.timeout_seconds:g} s ({str(error).splitlines()[0]}): "
            "look at what they say, and at the network between the hosts"
        ) from error
    watch = connect(parallel.heartbeat_seconds)
    try:
        with watch:
            mesh = replace(build_mesh(parallel, target), watch=watch)
            watch.start()
            yield mesh
    finally:
        # a rank that leaves without this can abort, and torchrun then reports a finished job as failed
        dist.destroy_process_group()
        watch.close()


def build_mesh(parallel: ParallelConfig, device: torch.device) -> Mesh:
    """The axes over a process group that all its ranks have joined; all of them call this together.

    Raises:
        InputError: degrees that do not fit.
        AgreementError: ranks that were told of different degrees.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    degrees = resolve_degrees(parallel, size)
    everyone: list[dict[str, int]] = [{} for _ in range(size)]
    dist.all_gather_object(everyone, degrees)
    if any(others != degrees for others in everyone):  # groups made from different degrees would wait for ever
        raise AgreementError(
            f"ranks do not form one mesh: {'; '.join(f'rank {r}: {d}' for r, d in enumerate(everyone))}. "
            "Start every rank with the same parallel settings"
        )
    device_mesh = init_device_mesh(device.type, tuple(degrees.values()), mesh_dim_names=tuple(degrees))
    ring, ulysses = (
        Axis(name, degree, device_mesh.get_local_rank(name), device_mesh.get_group(name))
        for name, degree in degrees.items()
    )
    return Mesh(
        device=device,
        world=Axis("world", size, rank, dist.group.WORLD),
        sequence=SequenceAxes(ring, ulysses, Axis("sequence", size, rank, dist.group.WORLD)),
        backend=dist.get_backend(),
    )

"""The ranks of one run, and the axes that they form.

A `Mesh` is made once and handed to whatever communicates; there are no global groups. One process without torchrun
is a mesh whose axes all have size 1, and takes the same code path. Knows no model.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from ..config.sections import ParallelConfig
from ..errors import AgreementError, InputError, S2VideoError
from ..system import ranks
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
    """All ranks of the run, and the axes that they form: ring × ulysses × branch, branch varying fastest.

    Attributes:
        sequence: the ranks that run this rank's branch; they share its tokens.
        branch: size 2 where cond (rank 0) and uncond (rank 1) run side by side, else 1. Its two ranks are partners.
        merged: all ranks as one set that shares the tokens of one branch; equal to `sequence` without a branch axis.
            Its Ulysses groups are those of both branches together, so partners are neighbours in it.
        watch: this rank's watch over the others.
    """

    device: torch.device
    world: Axis = Axis("world")
    sequence: SequenceAxes = SequenceAxes()
    branch: Axis = Axis("branch")
    merged: SequenceAxes = SequenceAxes()
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
            "branch": self.branch.size,
            "backend": self.backend,
            "device": self.device.type,
        }


def resolve_degrees(parallel: ParallelConfig, world_size: int) -> dict[str, int]:
    """The size of every axis, slowest varying first; their product is the number of ranks.

    A degree left out is what the others leave of the ranks; where ring and ulysses both are, ring is 1.

    Raises:
        InputError: where no such product is there; the message names every factor. Also for `degrees: auto`, which
            `plan.resolve_parallel` turns into degrees.
    """
    if parallel.degrees == "auto" and world_size > 1:
        raise InputError("parallel.degrees: auto has to be resolved before this, by planning.plan.resolve_parallel")
    given = {name: d for name, d in (("ring", parallel.ring), ("ulysses", parallel.ulysses)) if d is not None}
    if parallel.branch > 1:
        given["branch"] = parallel.branch
    product = math.prod(given.values())
    rest = world_size // product
    ring = parallel.ring if parallel.ring is not None else (rest if parallel.ulysses is not None else 1)
    ulysses = parallel.ulysses if parallel.ulysses is not None else rest
    degrees = {"ring": ring, "ulysses": ulysses, "branch": parallel.branch}
    if math.prod(degrees.values()) != world_size:
        said = " × ".join(f"{name} {degree}" for name, degree in given.items())
        if len(given) > 1:
            said += f" = {product}"
        must = "must equal" if {"ring", "ulysses"} <= given.keys() else "must divide"
        raise InputError(
            f"parallel: {said} {must} the number of ranks, {world_size}; "
            f"start {product} rank(s) (--nproc-per-node {product}) or leave {_keys(given)} out"
        )
    return degrees


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
    local_rank = ranks.local_rank()
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
        AgreementError: ranks that were told of different degrees, or of different places for the weights.
        S2VideoError: other ranks that do not come.
    """
    target = resolve_device(device)
    if not ranks.launched_by_torchrun():
        resolve_degrees(parallel, 1)
        yield Mesh(target)
        return

    resolve_degrees(parallel, ranks.world_size())  # before anybody waits for anybody
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
        AgreementError: ranks that were told of different degrees, or of different places for the weights.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    degrees = resolve_degrees(parallel, size)
    told = {**degrees, "weights": parallel.weights}
    everyone: list[dict[str, int | str]] = [{} for _ in range(size)]
    dist.all_gather_object(everyone, told)
    if any(others != told for others in everyone):  # groups made from different degrees would wait for ever
        raise AgreementError(
            f"ranks do not form one mesh: {'; '.join(f'rank {r}: {d}' for r, d in enumerate(everyone))}. "
            "Start every rank with the same parallel settings"
        )
    grid = torch.arange(size).view(*degrees.values())

    def axis(name: str, groups: str) -> Axis:
        return _axis(name, rearrange(grid, f"r u b -> {groups}"), parallel.timeout_seconds)

    ring, ulysses = axis("ring", "(u b) r"), axis("ulysses", "(r b) u")
    sequence = SequenceAxes(ring, ulysses, axis("sequence", "b (r u)"))
    both = axis("ulysses", "r (u b)") if parallel.branch > 1 else ulysses
    world = Axis("world", size, rank, dist.group.WORLD)
    return Mesh(
        device=device,
        world=world,
        sequence=sequence,
        branch=axis("branch", "(r u) b"),
        merged=SequenceAxes(ring, both, replace(world, name="sequence")),
        backend=dist.get_backend(),
    )


def in_own_group(axis: Axis, timeout_seconds: float) -> Axis:
    """The same ranks in a new group, whose collectives do not queue behind the old one's. All call it together."""
    members = dist.get_process_group_ranks(axis.group)
    return replace(axis, group=dist.new_group(members, timeout=timedelta(seconds=timeout_seconds)))


def _axis(name: str, groups: Tensor, timeout_seconds: float) -> Axis:
    """This rank's place in the row of `groups` [G, ranks of a group] that holds it. All ranks call it together."""
    count, size = groups.shape
    if size == 1:
        return Axis(name)
    row = next(row for row in groups.tolist() if dist.get_rank() in row)
    group = dist.group.WORLD
    if count > 1:
        group, _ = dist.new_subgroups_by_enumeration(groups.tolist(), timeout=timedelta(seconds=timeout_seconds))
    return Axis(name, size, row.index(dist.get_rank()), group)


def first_ranks(name: str, size: int, world: Axis, timeout_seconds: float) -> Axis | None:
    """The first `size` ranks of the world as an axis; None on the others. All ranks call it together."""
    if size == world.size:
        return replace(world, name=name)
    group = dist.new_group(list(range(size)), timeout=timedelta(seconds=timeout_seconds)) if size > 1 else None
    return Axis(name, size, world.rank, group) if world.rank < size else None

"""The mesh of one run: its ranks and their axes.

A `Mesh` is made once and passed to all code that communicates; there are no global groups. One process without torchrun
is a mesh whose axes all have size 1, on the same code path. Knows no model.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
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
from ..system.processes import IDLENESS
from .statuses import Limits
from .watch import Watch, connect

Groups = tuple[tuple[int, ...], ...]  # ranks of each group, ascending; all of the same length

# NCCL counts a collective's time from the moment it is queued, so the limit includes the computation queued before it.
_LEAST_NCCL_LIMIT = 120.0  # seconds, longer than a step of the largest models on two GPUs
_NCCL_SLACK = 60.0  # seconds by which NCCL's limit is longer, because it aborts the process where the watch explains


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh: `size` ranks that share `group`, and this rank's index `rank` among them."""

    name: str
    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SequenceAxes:
    """The `ring` × `ulysses` ranks that share one video's tokens.

    Attributes:
        ring: ranks that keep their queries and pass on keys and values. Suits links between nodes.
        ulysses: ranks that exchange tokens for heads. They are neighbours in rank, so within a node.
        whole: both as one axis, ulysses varying fastest. Tokens are sharded and gathered over it.
    """

    ring: Axis = Axis("ring")
    ulysses: Axis = Axis("ulysses")
    whole: Axis = Axis("sequence")


@dataclass(frozen=True)
class Mesh:
    """All ranks of the run, and their axes ring × ulysses × branch, branch varying fastest.

    Attributes:
        sequence: the ranks that run this rank's branch and share its tokens.
        branch: size 2 if cond (rank 0) and uncond (rank 1) run in parallel, otherwise 1. Its two ranks are partners.
        merged: axes over all ranks, to share the tokens of one branch; equal to `sequence` without a branch axis.
            Its Ulysses groups join those of both branches, so partners are neighbours in them.
        watch: this rank's watch over the other ranks.
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

    def undivided(self) -> "Mesh":
        """Return the same ranks without a branch axis: all of them share the tokens of each branch."""
        return self if self.branch.size == 1 else replace(self, sequence=self.merged, branch=Axis("branch"))

    def describe(self) -> dict[str, int | str | None]:
        """Return the mesh's entry in the sidecar."""
        return {
            "world_size": self.world.size,
            "ring": self.sequence.ring.size,
            "ulysses": self.sequence.ulysses.size,
            "branch": self.branch.size,
            "backend": self.backend,
            "device": self.device.type,
        }


def resolve_degrees(parallel: ParallelConfig, world_size: int) -> dict[str, int]:
    """Return the size of every axis, slowest varying first; their product is the number of ranks.

    A missing degree gets the ranks that the others leave. If ring and ulysses are both missing, ring is 1.

    Raises:
        InputError: no such product exists; the message names every factor. Also for `degrees: auto`, which
            `plan.resolve_parallel` must have replaced.
    """
    if parallel.degrees == "auto" and world_size > 1:
        raise InputError(
            "parallel.degrees: expected resolved degrees, got auto; call planning.plan.resolve_parallel first"
        )
    given = {name: d for name, d in (("ring", parallel.ring), ("ulysses", parallel.ulysses)) if d is not None}
    if parallel.branch > 1:
        given["branch"] = parallel.branch
    product = math.prod(given.values())
    rest = world_size // product
    ring = parallel.ring if parallel.ring is not None else (rest if parallel.ulysses is not None else 1)
    ulysses = parallel.ulysses if parallel.ulysses is not None else rest
    degrees = {"ring": ring, "ulysses": ulysses, "branch": parallel.branch}
    if math.prod(degrees.values()) != world_size:
        factors = " × ".join(f"{name} {degree}" for name, degree in given.items())
        if len(given) > 1:
            factors += f" = {product}"
        must = "must equal" if {"ring", "ulysses"} <= given.keys() else "must divide"
        raise InputError(
            f"parallel: {factors} {must} the number of ranks, {world_size}; "
            f"start {product} rank(s) (--nproc-per-node {product}) or leave {_keys(given)} out"
        )
    return degrees


def _keys(names: Iterable[str]) -> str:
    return " and ".join(f"parallel.{name}" for name in names)


def resolve_device(name: str) -> torch.device:
    """Return this process's device for "auto", "cpu" or "cuda". Each rank of a host has its own GPU.

    Raises:
        InputError: "cuda" without a GPU, or more ranks than GPUs on this host.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("model.device: expected a GPU for cuda, got none that torch can use; choose cpu or auto")
    local_rank = ranks.local_rank()
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"--nproc-per-node: expected at most one rank per GPU, got rank {local_rank} of this host and "
            f"{torch.cuda.device_count()} GPU(s); start fewer ranks"
        )
    return torch.device("cuda", local_rank)


def choose_backend(parallel: ParallelConfig, device: torch.device) -> str:
    """Return the backend of several ranks on this device: "nccl" or "gloo".

    Raises:
        InputError: the device and the configured backend do not go together, or the time limit is too short for NCCL.
    """
    wanted = "nccl" if device.type == "cuda" else "gloo"
    if parallel.backend not in ("auto", wanted):
        reason = "gloo cannot send GPU tensors between ranks" if wanted == "nccl" else "nccl needs GPUs"
        raise InputError(
            f"parallel.backend: expected {wanted} or auto on {device.type}, got {parallel.backend}: {reason}; leave it "
            "out"
        )
    if wanted == "nccl" and parallel.timeout_seconds < _LEAST_NCCL_LIMIT:
        raise InputError(
            f"parallel.timeout_seconds: expected at least {_LEAST_NCCL_LIMIT:g} with nccl, whose limit includes queued "
            f"computation, up to a whole step, got {parallel.timeout_seconds:g}; leave it out"
        )
    return wanted


def _group_limit(timeout_seconds: float, backend: str | None = None) -> timedelta:
    """Return the time limit of a group's collectives; None stands for the default group's backend."""
    slack = _NCCL_SLACK if (backend or dist.get_backend()) == "nccl" else 0.0
    return timedelta(seconds=timeout_seconds + slack)


@contextmanager
def init_mesh(parallel: ParallelConfig, device: str = "auto") -> Iterator[Mesh]:
    """Join the run's process group if torchrun started this process, and leave it at the end, also after an error.

    Args:
        device: as in `resolve_device`.

    Raises:
        InputError: the device is missing, or the degrees or the backend do not fit.
        AgreementError: the ranks have different degrees, or different `parallel.weights`.
        S2VideoError: other ranks did not join in time.
    """
    target = resolve_device(device)
    if not ranks.launched_by_torchrun():
        resolve_degrees(parallel, 1)
        yield Mesh(target)
        return

    ranks.check()
    resolve_degrees(parallel, ranks.world_size())  # before any rank waits for another
    backend = choose_backend(parallel, target)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    watch: Watch | None = None
    try:
        store, watch = _joined_store(parallel, backend)
        with watch:
            _init_process_group(backend, store, watch, parallel.timeout_seconds, target)
            yield replace(build_mesh(parallel, target), watch=watch)
    finally:
        # without this, a rank may abort at exit, and torchrun reports a finished job as failed
        if dist.is_initialized():
            dist.destroy_process_group()
        if watch is not None:
            watch.close()


def _joined_store(parallel: ParallelConfig, backend: str) -> tuple[dist.Store, Watch]:
    """Return the run's store, and a watch that uses it. Raises S2VideoError."""
    limit = timedelta(seconds=parallel.timeout_seconds)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        watch = connect(rank, size, _rules(parallel, backend))
    except dist.DistError as error:
        raise S2VideoError(
            f"could not join the other ranks within {parallel.timeout_seconds:g} s ({str(error).splitlines()[0]}); "
            "check their errors, and the network between the hosts"
        ) from error
    return store, watch


def _rules(parallel: ParallelConfig, backend: str) -> Limits:
    """Return the time limits of the watch."""
    if backend != "nccl":
        return Limits(silence=parallel.heartbeat_seconds)
    # A thread that waits for a GPU need not use the CPU; whether a rank is idle is not known before that limit.
    longest = parallel.timeout_seconds
    return Limits(silence=parallel.heartbeat_seconds, idleness=max(IDLENESS, longest), longest_step=longest)


def _init_process_group(
    backend: str, store: dist.Store, watch: Watch, timeout_seconds: float, target: torch.device
) -> None:
    limit = _group_limit(timeout_seconds, backend)
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"s2video/group/{ranks.attempt()}", store),
            rank=ranks.rank(),
            world_size=ranks.world_size(),
            timeout=limit,
            device_id=target if backend == "nccl" else None,
        )
    except dist.DistError as error:
        raise S2VideoError(
            f"could not join the other ranks within {limit.total_seconds():g} s ({str(error).splitlines()[0]}): "
            f"{watch.missing()} is missing; check their errors, and the network between the hosts"
        ) from error


def build_mesh(parallel: ParallelConfig, device: torch.device) -> Mesh:
    """Build the mesh over the default process group. All its ranks call this together.

    Raises:
        InputError: the degrees do not fit.
        AgreementError: the ranks have different degrees, or different `parallel.weights`.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    degrees = resolve_degrees(parallel, size)
    own = {**degrees, "weights": parallel.weights}
    everyone: list[dict[str, int | str]] = [{} for _ in range(size)]
    dist.all_gather_object(everyone, own)
    if any(other != own for other in everyone):  # groups of different degrees would wait without end
        raise AgreementError(
            "expected the same parallel settings on all ranks, got "
            f"{'; '.join(f'rank {r}: {d}' for r, d in enumerate(everyone))}; start every rank with the same settings"
        )
    made: dict[Groups, dist.ProcessGroup | None] = {(tuple(range(size)),): dist.group.WORLD}
    axes = {name: _axis(name, groups, made, parallel.timeout_seconds) for name, groups in axis_groups(degrees).items()}
    sequence = SequenceAxes(axes["ring"], axes["ulysses"], axes["sequence"])
    both = replace(axes["merged"], name="ulysses") if parallel.branch > 1 else axes["ulysses"]
    world = Axis("world", size, rank, dist.group.WORLD)
    return Mesh(
        device=device,
        world=world,
        sequence=sequence,
        branch=axes["branch"],
        merged=SequenceAxes(axes["ring"], both, replace(world, name="sequence")),
        backend=dist.get_backend(),
    )


def axis_groups(degrees: Mapping[str, int]) -> dict[str, Groups]:
    """Return the groups of ranks of each axis of a mesh; "merged" joins the Ulysses groups of both branches."""
    grid = torch.arange(math.prod(degrees.values())).view(degrees["ring"], degrees["ulysses"], degrees["branch"])
    layouts = {"ring": "(u b) r", "ulysses": "(r b) u", "sequence": "b (r u)", "merged": "r (u b)", "branch": "(r u) b"}
    return {name: _rows(rearrange(grid, f"r u b -> {layout}")) for name, layout in layouts.items()}


def _rows(grid: Tensor) -> Groups:
    return tuple(tuple(row) for row in grid.tolist())


def in_own_group(axis: Axis, timeout_seconds: float) -> Axis:
    """Return the axis with a new group, whose collectives do not queue behind the old one's. All call it together."""
    members = dist.get_process_group_ranks(axis.group)
    return replace(axis, group=dist.new_group(members, timeout=_group_limit(timeout_seconds)))


def _axis(name: str, groups: Groups, made: dict[Groups, dist.ProcessGroup | None], timeout_seconds: float) -> Axis:
    """Return this rank's axis. All ranks call it together. Axes of the same groups share one, from `made`."""
    size = len(groups[0])
    if size == 1:
        return Axis(name)
    if groups not in made:
        lists = [list(group) for group in groups]
        made[groups], _ = dist.new_subgroups_by_enumeration(lists, timeout=_group_limit(timeout_seconds))
    row = next(row for row in groups if dist.get_rank() in row)
    return Axis(name, size, row.index(dist.get_rank()), made[groups])


def first_ranks(name: str, size: int, world: Axis, timeout_seconds: float) -> Axis | None:
    """Return the first `size` ranks of the world as an axis; None on the others. All ranks call it together."""
    if size == world.size:
        return replace(world, name=name)
    group = dist.new_group(list(range(size)), timeout=_group_limit(timeout_seconds)) if size > 1 else None
    return Axis(name, size, world.rank, group) if world.rank < size else None

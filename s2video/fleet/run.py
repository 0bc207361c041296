"""A batch on a Ray cluster, or on one that is started on this machine for the length of the batch."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch.records import Released
from ..batch.run_file import RESERVED, Overlap
from ..batch.store import Store
from ..batch.supervisor import oversee
from ..config.run import RunConfig
from ..errors import InputError, S2VideoError
from ..system.launcher import MAX_PROCESSES
from ..system.processes import IDLENESS, has_gpu
from ..system.ranks import MAX_RANKS
from ..system.terminal import say
from .keeper import INCOMING, Files, Keeper

if TYPE_CHECKING:
    from .remote_store import Ask

_SEEN = f"{RESERVED}seen-"  # of a file's name
_OBJECTS = 256 * 2**20  # bytes of shared memory for objects of an own cluster: parts of files, one at a time


@dataclass(frozen=True)
class RayOptions:
    """How a batch runs on Ray.

    Attributes:
        address: of the cluster's head, HOST:PORT; "auto" for the one of this machine, "local" for an own one.
        replicas: the most at the same time.
        nproc: ranks of each.
        cpus: cores of each rank.
        spans: a replica's ranks may be on several machines.
        files: whether machines share the batch's folder.
    """

    address: str
    replicas: int
    nproc: int
    cpus: int = 1
    spans: bool = False
    files: Files = "auto"

    def check(self) -> None:
        """Raise InputError if Ray is not installed, or a value cannot be used. Starts nothing."""
        most = MAX_PROCESSES if self.address == "local" else MAX_RANKS
        if min(self.replicas, self.nproc, self.cpus) < 1 or self.replicas * self.nproc > most:
            raise InputError(
                f"--replicas, --nproc and --rank-cpus: expected values >= 1, and at most {most} ranks, got "
                f"{self.replicas}, {self.nproc} and {self.cpus}"
            )
        host, _, port = self.address.rpartition(":")
        if self.address not in ("auto", "local") and (not host or not port.isdigit() or "://" in host):
            raise InputError(
                f"--ray: expected local, auto, or the HOST:PORT of a cluster's head, such as 10.0.0.1:6379, got "
                f"{self.address[:100]!r}; start the batch on a machine of the cluster"
            )
        if find_spec("ray") is None:  # it reads some of its environment when it is imported; see `_cluster`
            raise InputError("--ray: expected the package ray, got none; pip install 's2video[ray]'")


def run_on_ray(store: Store, config: RunConfig, options: RayOptions, *, overlap: Overlap) -> int | None:
    """Make the waiting jobs of a batch on Ray. Returns the signal that stopped it, or None.

    While this runs, one actor on this machine is the only process that writes the store.

    Args:
        config: of any job; it says which device is used.

    Raises:
        InputError: there is no such cluster, or an own one has not enough GPUs.
        S2VideoError: see `oversee`; also if the actor that holds the store has ended.
    """
    with _cluster(options), _seen(store.folder) as seen:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from ..records.sidecar import versions
        from .crew import RayCrew, RayPlan
        from .rank import RankSettings, asking

        uses_gpus = _uses_gpus(config, options)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(Keeper).options(num_cpus=0, max_restarts=0, scheduling_strategy=here)
        actor = keeper.remote(str(store.folder.resolve()), versions())
        ask = asking(actor)
        settings = RankSettings(
            config=config.model_dump_json(),
            overlap=overlap,
            folder=str(store.folder.resolve()),
            seen=seen,
            cwd=os.getcwd(),
            files=options.files,
            idle_limit=max(IDLENESS, config.parallel.timeout_seconds) if uses_gpus else IDLENESS,
        )
        plan = RayPlan(options.replicas, options.nproc, uses_gpus, options.cpus, options.spans, settings)
        try:
            return oversee(_KeptStore(ask), RayCrew(plan, actor, ask))
        finally:
            _close(ask)


def _close(ask: Ask) -> None:
    try:
        ask("close")
    except S2VideoError as error:
        say(error)


@contextmanager
def _cluster(options: RayOptions) -> Iterator[None]:
    """Be connected to the cluster in the block. An own one ends with the block, and with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends no usage statistics
    # Ray's own default, 15, lets ranks wait for every other program of the machine; of a cluster that runs, it decides.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if options.address == "local":  # without a token, anyone who can connect could run programs as this user
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        if options.address == "local":
            cores = max(os.cpu_count() or 1, options.replicas * options.nproc * options.cpus)
            ray.init(address="local", num_cpus=cores, object_store_memory=_OBJECTS, **settings)
        else:
            del settings["include_dashboard"]
            ray.init(address=options.address, **settings)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        where = "this machine" if options.address == "local" else options.address
        raise InputError(
            f"--ray {options.address}: expected a Ray cluster at {where} that this machine belongs to, got an error "
            f"({reason}); check `ray status`, or use --ray local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _seen(folder: Path) -> Iterator[str]:
    """Put a file into the batch's folder for the length of the block, by which machines see that they share it.

    What a start that was killed has left is removed. The caller holds the batch's lock.
    """
    for old in folder.glob(f"{_SEEN}*"):
        old.unlink(missing_ok=True)
    shutil.rmtree(folder / INCOMING, ignore_errors=True)
    path = folder / f"{_SEEN}{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(folder / INCOMING, ignore_errors=True)


def _uses_gpus(config: RunConfig, options: RayOptions) -> bool:
    """Whether ranks get GPUs. Raises InputError if an own cluster has too few."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    uses = config.model.device == "cuda" or (config.model.device == "auto" and (gpus > 0 or has_gpu()))
    needed = options.replicas * options.nproc
    if uses and options.address == "local" and gpus < needed:
        raise InputError(
            f"--replicas {options.replicas} of --nproc {options.nproc}: expected {needed} GPUs, got {gpus}; start fewer"
        )
    return uses


class _KeptStore:
    """An `OverseenStore` that asks the keeper."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def owners(self) -> set[str]:
        found: set[str] = self._ask("owners")
        return found

    def has_drawn(self, owner: str) -> bool:
        return bool(self._ask("has_drawn", owner))

    def release(self) -> list[Released]:
        found: list[Released] = self._ask("release")
        return found

    def count_open(self) -> dict[str, int]:
        found: dict[str, int] = self._ask("count_open")
        return found

    def log(self, event: str, **facts: Any) -> None:
        self._ask("log", event, facts)

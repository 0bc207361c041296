"""One rank of a replica in a process that Ray started: its place, its environment, and its end.

Ray calls a method of an actor in the main thread of its process, where signals can be handled, so a replica runs as it
does under torchrun.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import ray

from ..batch.replica import Overlap, run_replica
from ..batch.store import LEASE
from ..config.run import RunConfig
from ..errors import InputError, S2VideoError, StoppedError
from ..system.locks import is_held
from ..system.roster import own_roster
from ..system.terminal import prepare_streams, say_error
from .keeper import Stream
from .remote_store import Ask, RemoteStore, UnreachableError

Files = Literal["auto", "shared", "collect"]

_PATIENCE = LEASE / 4  # seconds for an answer of the keeper
_ROSTERS = "s2video-ray-"  # folders of the ranks of one replica on this machine
_LAST_WORDS = 3.0  # seconds for the last lines to reach the keeper


@dataclass(frozen=True)
class Place:
    """Where a rank is.

    Attributes:
        node: id of Ray's node.
        address: of the machine.
        port: that was free a moment ago.
        gpus: that Ray gave to it, as entries for CUDA_VISIBLE_DEVICES.
    """

    node: str
    address: str
    port: int
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class RankPlan:
    """What a rank is and does.

    Attributes:
        owner: the replica's name.
        machine: number of its machine among those of the replica.
        master: address and port of rank 0's store.
        gpus: all of this replica's GPUs on this machine, by local rank.
        config: JSON of any job; it says how ranks join.
        folder: of the batch, where the batch was started.
        seen: name of a file in it that shows whether this machine sees the same folder.
        cwd: working folder where the batch was started, against which relative paths count.
        idle_limit: see `RemoteStore`.
    """

    owner: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    machine: int
    master: tuple[str, int]
    gpus: tuple[str, ...]
    config: str
    overlap: Overlap
    folder: str
    seen: str
    cwd: str
    files: Files
    idle_limit: float


class Rank:
    """An actor."""

    def place(self) -> Place:
        """Return where this process is."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        context = ray.get_runtime_context()
        gpus = tuple(map(str, ray.get_gpu_ids()))
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), port, gpus)

    def run(self, plan: RankPlan, keeper: Any) -> int:
        """Make jobs until none waits; return the exit code that a process would have."""
        prepare_streams()
        ask = asking(keeper)
        sys.stdout = _Lines(keeper, plan, "output", sys.stdout)
        sys.stderr = _Lines(keeper, plan, "error", sys.stderr)
        try:
            return self._run(plan, ask)
        except SystemExit as end:  # Ray would take it for the actor's end
            return end.code if isinstance(end.code, int) else 1
        finally:
            own_roster().write("ended", goodbye=True)
            sys.stdout.flush()
            sys.stderr.flush()
            shutil.rmtree(_roster(plan) / str(plan.local_rank), ignore_errors=True)
            if plan.rank == 0:  # it alone writes files; what counts was brought
                shutil.rmtree(_scratch(plan), ignore_errors=True)
            with suppress(OSError):  # the last one removes it
                _roster(plan).rmdir()

    def _run(self, plan: RankPlan, ask: Ask) -> int:
        try:
            _enter(plan)
            collects = self._collects(plan)
            folder = _scratch(plan) if collects else Path(plan.folder)
            idle_limit = plan.idle_limit if plan.world_size == 1 else None
            store = RemoteStore(ask, folder, collects=collects, idle_limit=idle_limit)
            config = RunConfig.model_validate_json(plan.config)
            run_replica(store, config, plan.owner, overlap=plan.overlap, progress="none")
        except StoppedError:
            return 143
        except S2VideoError as error:
            if not error.is_reported:
                say_error(error)
            return 2 if isinstance(error, InputError) else 1
        except Exception:
            traceback.print_exc()
            return 1
        return 0

    def _collects(self, plan: RankPlan) -> bool:
        """Whether files of this machine are to be brought to the keeper."""
        is_seen = (Path(plan.folder) / plan.seen).exists()
        if plan.files == "shared" and not is_seen:
            raise InputError(
                f"{plan.folder}: expected the batch's folder on {socket.gethostname()}, because of --ray-files shared, "
                "got another one or none; mount it, or use --ray-files auto"
            )
        return plan.files == "collect" or not is_seen


def asking(keeper: Any, patience: float = _PATIENCE) -> Ask:
    """Return a function that calls a method of the keeper, an actor of Ray, and raises what the method raises."""

    def ask(name: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(keeper, name).remote(*arguments), timeout=patience)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            text = str(error).splitlines()[0]
            raise UnreachableError(f"the process that holds the batch's state does not answer ({text})") from None

    return ask


class _Lines:
    """A stream whose lines are also sent to the keeper."""

    def __init__(self, keeper: Any, plan: RankPlan, stream: Stream, beneath: TextIO) -> None:
        source = plan.owner if plan.world_size == 1 else f"{plan.owner} rank {plan.rank}"
        own = str(_scratch(plan))  # files that are brought are told by where they will be
        self._send: Callable[[str], Any] = lambda line: keeper.tell.remote(
            source, stream, line.replace(own, plan.folder)
        )
        self._beneath = beneath
        self._rest = ""
        self._pending: list[Any] = []

    def write(self, text: str) -> int:
        self._beneath.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        self._pending += [self._send(line) for line in lines if line.strip()]
        return len(text)

    def flush(self) -> None:
        """Called after each line, and when the process ends suddenly; only then there is a reason to wait."""
        self._beneath.flush()
        if len(self._pending) > 0:
            with suppress(Exception):
                _, self._pending = ray.wait(
                    self._pending, num_returns=len(self._pending), timeout=_LAST_WORDS, fetch_local=False
                )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)


def _enter(plan: RankPlan) -> None:
    """Take on the working folder and the environment that torchrun gives to a rank."""
    try:
        os.chdir(plan.cwd)
    except OSError:
        if plan.files == "shared":
            raise InputError(
                f"{plan.cwd}: expected the folder in which the batch was started on {socket.gethostname()}, got none; "
                "start it in a folder that all machines share"
            ) from None
    if plan.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(plan.gpus)
    if plan.world_size == 1:
        return
    folder = _roster(plan) / str(plan.local_rank)
    _remove_rosters_of_the_dead()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "RANK": str(plan.rank),
        "WORLD_SIZE": str(plan.world_size),
        "LOCAL_RANK": str(plan.local_rank),
        "LOCAL_WORLD_SIZE": str(plan.local_size),
        "GROUP_RANK": str(plan.machine),
        "MASTER_ADDR": plan.master[0],
        "MASTER_PORT": str(plan.master[1]),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_ERROR_FILE": str(folder / "error.json"),
    }
    own_roster()


def _roster(plan: RankPlan) -> Path:
    # two machines of a replica can be one host, such as containers that share a folder
    return _own_folder() / f"{_ROSTERS}{plan.owner}-{plan.machine}"


def _scratch(plan: RankPlan) -> Path:
    return _own_folder() / f"{plan.owner}-files"


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"s2video-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder}: expected a folder of this user, got another user's; remove it, or set TMPDIR")
    return folder


def _remove_rosters_of_the_dead() -> None:
    """Remove what replicas have left on this machine whose ranks were all killed."""
    for folder in _own_folder().glob(f"{_ROSTERS}*"):
        entries = list(folder.glob("*/s2video-rank"))
        if entries and not any(map(is_held, entries)):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(_own_folder() / f"{folder.name.removeprefix(_ROSTERS).rpartition('-')[0]}-files", True)

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import ray

from ..batch.replica import run_replica
from ..batch.run_file import Overlap
from ..config.run import RunConfig
from ..errors import InputError, S2VideoError, StoppedError
from ..system.locks import held_lock, is_held
from ..system.roster import own_roster
from ..system.terminal import prepare_streams, say_error
from .keeper import Files, Stream
from .remote_store import Ask, RemoteStore, UnreachableError

_PATIENCE = 120.0  # seconds for an answer of the keeper, which may be busy with the files of other replicas
_ROSTERS = "s2video-ray-"  # folders of the ranks of one replica on this machine
_SCRATCH = "-files"  # end of the name of a folder for files that are brought to the keeper
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
class RankSettings:
    """What all ranks of all replicas have in common.

    Attributes:
        config: JSON of any job; it says how ranks join.
        folder: of the batch, where the batch was started.
        seen: name of a file in it that shows whether this machine sees the same folder.
        cwd: working folder where the batch was started, against which relative paths count.
        idle_limit: see `RemoteStore`.
    """

    config: str
    overlap: Overlap
    folder: str
    seen: str
    cwd: str
    files: Files
    idle_limit: float


@dataclass(frozen=True)
class RankPlan:
    """What a rank is and does.

    Attributes:
        owner: the replica's name.
        machine: number of its machine among those of the replica.
        master: address and port of rank 0's store.
        gpus: all of this replica's GPUs on this machine, by local rank.
    """

    settings: RankSettings
    owner: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    machine: int
    master: tuple[str, int]
    gpus: tuple[str, ...]


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
            with suppress(OSError):  # the last one removes it
                _roster(plan).rmdir()

    def _run(self, plan: RankPlan, ask: Ask) -> int:
        try:
            _enter(plan)
            settings, collects = plan.settings, _collects(plan.settings)
            folder = _scratch(plan) if collects else Path(settings.folder)
            idle_limit = settings.idle_limit if plan.world_size == 1 else None
            store = RemoteStore(ask, folder, collects=collects, idle_limit=idle_limit)
            config = RunConfig.model_validate_json(settings.config)
            with _removed_at_end(folder) if collects and plan.rank == 0 else nullcontext():
                run_replica(store, config, plan.owner, overlap=settings.overlap, progress="none")
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


def _collects(settings: RankSettings) -> bool:
    """Return whether files of this machine are to be brought to the keeper."""
    is_seen = (Path(settings.folder) / settings.seen).exists()
    if settings.files == "shared" and not is_seen:
        raise InputError(
            f"{settings.folder}: expected the batch's folder on {socket.gethostname()}, because of --ray-files shared, "
            "got another one or none; mount it, or use --ray-files auto"
        )
    return settings.files == "collect" or not is_seen


def asking(keeper: Any) -> Ask:
    """Return a function that calls methods of the keeper, an actor of Ray."""

    def ask(name: str, *arguments: Any, patience: float = _PATIENCE) -> Any:
        try:
            return ray.get(getattr(keeper, name).remote(*arguments), timeout=patience)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            reason = first_line(error)
            raise UnreachableError(f"the process that holds the batch's state does not answer ({reason})") from None

    return ask


def first_line(error: Exception) -> str:
    """Return the first line of an error, many of which Ray ends with a trace."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


class _Lines:
    """A stream whose lines are also sent to the keeper."""

    def __init__(self, keeper: Any, plan: RankPlan, stream: Stream, beneath: TextIO) -> None:
        source = plan.owner if plan.world_size == 1 else f"{plan.owner} rank {plan.rank}"
        own = str(_scratch(plan))  # files that are brought are told by where they will be
        self._send: Callable[[str], Any] = lambda line: keeper.tell.remote(
            source, stream, line.replace(own, plan.settings.folder)
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
        """Wait until the keeper has the lines, because the process may end suddenly after this."""
        self._beneath.flush()
        if self._pending:
            with suppress(Exception):
                _, self._pending = ray.wait(
                    self._pending, num_returns=len(self._pending), timeout=_LAST_WORDS, fetch_local=False
                )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)


def _enter(plan: RankPlan) -> None:
    """Take on the working folder and the environment that torchrun gives to a rank."""
    try:
        os.chdir(plan.settings.cwd)
    except OSError:
        if plan.settings.files == "shared":
            raise InputError(
                f"{plan.settings.cwd}: expected the folder in which the batch was started on {socket.gethostname()}, "
                "got none; start it in a folder that all machines share"
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
    return _own_folder() / f"{plan.owner}{_SCRATCH}"


@contextmanager
def _removed_at_end(folder: Path) -> Iterator[None]:
    """Remove a replica's folder of files after the block, and before it those of replicas that were killed."""
    for old in _own_folder().glob(f"*{_SCRATCH}"):
        if not is_held(lock := old.with_suffix(".lock")):
            shutil.rmtree(old, ignore_errors=True)
            lock.unlink(missing_ok=True)
    lock = folder.with_suffix(".lock")
    with held_lock(lock):  # before the folder is made
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


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

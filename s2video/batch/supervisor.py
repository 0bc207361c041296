"""Supervision of a batch's replicas on this machine: starts, watches and restarts processes or torchruns.

Knows the store and how processes end, but neither shots nor models.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..errors import InputError, S2VideoError
from ..system.launcher import MAX_PROCESSES, LaunchPlan, held_signals, start_ranks, torchrun_command
from ..system.locks import is_held
from ..system.processes import IDLENESS, Idleness, kill_tree, look, tree
from ..system.terminal import say
from .interfaces import Crew, Ending, OverseenStore, Replica
from .store import LEASE, Store

_INTERVAL = 0.2  # seconds between two checks of the replicas
_LOOK_INTERVAL = 2.0  # seconds between two looks at what their processes do
_RETRY_AFTER = 10.0  # seconds after which a replica that died before it drew a job is tried again, where replicas stay


@dataclass(frozen=True)
class ReplicaPlan:
    """The number of replicas, the ranks of each, and their GPUs.

    Attributes:
        gpus: entries for CUDA_VISIBLE_DEVICES; empty means the CPU.
    """

    count: int
    nproc: int
    gpus: Sequence[str] = ()

    def check(self) -> None:
        """Raise InputError if a number is below 1, or there are more ranks than GPUs."""
        if not (self.count >= 1 and self.nproc >= 1 and self.count * self.nproc <= MAX_PROCESSES):
            raise InputError(
                f"--replicas and --nproc: expected values >= 1, and at most {MAX_PROCESSES} ranks on this host, got "
                f"{self.count} and {self.nproc}"
            )
        if self.gpus and self.count * self.nproc > len(self.gpus):
            raise InputError(
                f"--replicas {self.count} of --nproc {self.nproc}: expected {self.count * self.nproc} GPUs, got "
                f"{len(self.gpus)}; start fewer"
            )

    def command(self, arguments: Sequence[str]) -> list[str]:
        if self.nproc == 1:
            return [sys.executable, "-m", "s2video", *arguments]
        return torchrun_command(LaunchPlan(self.nproc), arguments)

    def environment(self, number: int) -> Mapping[str, str]:
        """Return the environment of replica `number`, from 1, with its share of GPUs and cores."""
        environment = dict(os.environ)
        if self.count * self.nproc > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (self.count * self.nproc))))
        if self.gpus:
            mine = self.gpus[(number - 1) * self.nproc : number * self.nproc]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        return environment


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs for a run on `model.device`, as entries for CUDA_VISIBLE_DEVICES."""
    if device == "cpu":
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return named[:count] if named != [""] else [str(index) for index in range(count)]


@dataclass
class _LocalReplica:
    """A process of this machine, with all its ranks and encoders."""

    owner: str
    process: subprocess.Popen[bytes]
    has_work: Callable[[], bool]
    idle_limit: float
    idleness: Idleness = field(default_factory=lambda: Idleness(_LOOK_INTERVAL))
    ended_because: str | None = None  # why this process ended it

    def poll(self) -> Ending | None:
        code = self.process.poll()
        if code is None:
            return None
        if self.ended_because is not None:
            return Ending(f"{self.ended_because}, and was ended", code, self.ended_because)
        if code == 0:
            return Ending(None, code)
        return Ending(f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}", code)

    def end(self, reason: str) -> None:
        """End it, also processes that are stopped."""
        self.ended_because = reason
        kill_tree(self.process.pid)

    def end_if_idle(self) -> None:
        if self.ended_because is not None or not self.has_work():
            return
        pid = self.process.pid
        if self.idleness.update(partial(tree, pid)) > self.idle_limit:
            found = look(pid)
            stopped = ", because it is stopped (SIGSTOP)" if found is not None and found.is_stopped else ""
            self.end(f"did nothing for {self.idle_limit:g} s{stopped}")

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)


@dataclass(frozen=True)
class _LocalCrew:
    """Replicas as processes or torchruns of this machine.

    Attributes:
        arguments: of `s2video` for every replica; its name is added as `--owner NAME`.
        stays: a replica that has nothing to make waits for new jobs, which is no fault.
    """

    store: Store
    plan: ReplicaPlan
    arguments: Sequence[str]
    idleness: float
    stays: bool

    @property
    def count(self) -> int:
        return self.plan.count

    def start(self, number: int, owner: str) -> _LocalReplica:
        command = self.plan.command([*self.arguments, "--owner", owner])
        process = start_ranks(command, self.plan.environment(number))
        return _LocalReplica(owner, process, partial(self._has_work, owner), self.idleness)

    def tick(self) -> None:
        """Do nothing: what these replicas say reaches the terminal by itself."""

    def _has_work(self, owner: str) -> bool:
        """Return whether a replica makes a job or has still to start; one that stays may have nothing to do."""
        return not self.stays or owner in self.store.owners() or not is_held(self.store.owner_path(owner))


def supervise(
    store: Store,
    plan: ReplicaPlan,
    arguments: Sequence[str],
    *,
    idleness: float = IDLENESS,
    stays: bool = False,
) -> int | None:
    """Run replicas on this machine; see `oversee`.

    Args:
        arguments: arguments of `s2video` for every replica; its name is added as `--owner NAME`.
        idleness: seconds for which a replica with all its processes may do nothing.
    """
    return oversee(store, _LocalCrew(store, plan, arguments, idleness, stays), stays=stays)


def oversee(store: OverseenStore, crew: Crew, *, stays: bool = False) -> int | None:
    """Run replicas until no job is waiting or running.

    If a replica dies, it is reported, its job goes back into the queue, and it is restarted if it had drawn a job. One
    that died before, by its own fault, is not restarted; where replicas stay, it is tried again later, because the
    others may work for months. One that does nothing, or loses a job because it missed its heartbeat, is ended.

    Args:
        stays: go on when no job is left, because new ones may come; then only a signal ends it.

    Returns:
        The signal that stopped the batch, or None.

    Raises:
        S2VideoError: if jobs wait, but every replica died before it drew one.
    """
    running: dict[int, Replica] = {}
    retry_at: dict[int, float] = {}  # number of a replica that died before it drew a job -> monotonic seconds
    drew: set[str | None] = set()  # owners
    with held_signals(stops_softly=True) as signals:
        while True:
            crew.tick()
            drew |= store.owners()
            for number, replica in list(running.items()):
                if (ending := replica.poll()) is None:
                    continue
                del running[number]
                signals.processes.remove(replica)
                if ending.problem is not None and (not signals.received or ending.reason):
                    _report(store, replica, ending)
                    if ending.is_its_own and replica.owner not in drew and not store.has_drawn(replica.owner):
                        retry_at[number] = time.monotonic() + _RETRY_AFTER if stays else math.inf
            _release(store, running.values())
            for replica in running.values():
                replica.end_if_idle()
            states = store.count_open()
            if signals.received:
                if not running:
                    return signals.received[0]
            elif "waiting" in states:
                now = time.monotonic()
                free = [n for n in range(1, crew.count + 1) if n not in running and retry_at.get(n, 0.0) <= now]
                if not free and not running:
                    raise S2VideoError(
                        f"{states['waiting']} videos are waiting, but every replica exited before it drew one; "
                        "see their messages above"
                    )
                for number in free[: states["waiting"]]:
                    running[number] = crew.start(number, f"replica-{number}-{os.urandom(4).hex()}")
                    signals.add(running[number])
            elif "running" not in states and not running and not stays:
                crew.tick()
                return None
            time.sleep(_INTERVAL)


def _release(store: OverseenStore, running: Iterable[Replica]) -> None:
    """Requeue the jobs of replicas that are gone or missed their heartbeat, and end the latter."""
    for job in store.release():
        outcome = f"failed: {job.error}" if job.error else "goes back into the queue"
        say(f"{job.name} of {job.owner} {outcome} (attempt {job.attempts})")
        for replica in running:
            if replica.owner == job.owner and job.is_alive:
                replica.end(f"missed its heartbeat for {LEASE:g} s")


def _report(store: OverseenStore, replica: Replica, ending: Ending) -> None:
    say(f"{replica.owner} {ending.problem}")
    store.log("replica ended", replica=replica.owner, code=ending.code, reason=ending.reason)

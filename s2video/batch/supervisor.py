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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..errors import InputError, S2VideoError
from ..system.launcher import MAX_PROCESSES, LaunchPlan, held_signals, start_ranks, torchrun_command
from ..system.locks import is_held
from ..system.processes import IDLENESS, Idleness, kill_tree, look, tree
from ..system.terminal import say
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
class _Running:
    owner: str
    process: subprocess.Popen[bytes]
    idleness: Idleness = field(default_factory=lambda: Idleness(_LOOK_INTERVAL))
    ended_because: str | None = None  # why this process ended it

    def end(self, reason: str) -> None:
        """End it with all its ranks and encoders, also those that are stopped."""
        self.ended_because = reason
        kill_tree(self.process.pid)


def supervise(
    store: Store, plan: ReplicaPlan, arguments: Sequence[str], *, idleness: float = IDLENESS, stays: bool = False
) -> int | None:
    """Run replicas until no job is waiting or running.

    If a replica dies, it is reported, its job goes back into the queue, and it is restarted if it had drawn a job. One
    that died before is not restarted; where replicas stay, it is tried again later, because the others may work for
    months. One that does nothing, or loses a job because it missed its heartbeat, is ended.

    Args:
        arguments: arguments of `s2video` for every replica; its name is added as `--owner NAME`.
        idleness: seconds for which a replica with all its processes may do nothing.
        stays: go on when no job is left, because new ones may come; then only a signal ends it.

    Returns:
        The signal that stopped the batch, or None.

    Raises:
        S2VideoError: if jobs wait, but every replica died before it drew one.
    """
    running: dict[int, _Running] = {}
    retry_at: dict[int, float] = {}  # number of a replica that died before it drew a job -> monotonic seconds
    drew: set[str | None] = set()  # owners
    with held_signals(stops_softly=True) as signals:
        while True:
            drew |= store.owners()
            for number, replica in list(running.items()):
                if (code := replica.process.poll()) is None:
                    continue
                del running[number]
                signals.processes.remove(replica.process)
                if code != 0 and (not signals.received or replica.ended_because):
                    _report(store, replica, code)
                    if replica.owner not in drew and not store.has_drawn(replica.owner):
                        retry_at[number] = time.monotonic() + _RETRY_AFTER if stays else math.inf
            _release(store, running.values())
            _end_idle([r for r in running.values() if not stays or _has_work(store, r.owner)], idleness)
            states = store.count_open()
            if signals.received:
                if not running:
                    return signals.received[0]
            elif "waiting" in states:
                now = time.monotonic()
                free = [n for n in range(1, plan.count + 1) if n not in running and retry_at.get(n, 0.0) <= now]
                if not free and not running:
                    raise S2VideoError(
                        f"{states['waiting']} videos are waiting, but every replica exited before it drew one; "
                        "see their messages above"
                    )
                for number in free[: states["waiting"]]:
                    running[number] = _start(plan, number, arguments)
                    signals.add(running[number].process)
            elif "running" not in states and not running and not stays:
                return None
            time.sleep(_INTERVAL)


def _release(store: Store, running: Iterable[_Running]) -> None:
    """Requeue the jobs of replicas that are gone or missed their heartbeat, and end the latter."""
    for job in store.release():
        outcome = f"failed: {job.error}" if job.error else "goes back into the queue"
        say(f"{job.name} of {job.owner} {outcome} (attempt {job.attempts})")
        for replica in running:
            if replica.owner == job.owner and job.is_alive:
                replica.end(f"missed its heartbeat for {LEASE:g} s")


def _has_work(store: Store, owner: str) -> bool:
    """Return whether a replica that stays makes a job or has still to start; else there may be nothing to do."""
    return owner in store.owners() or not is_held(store.owner_path(owner))


def _end_idle(running: Iterable[_Running], limit: float) -> None:
    for replica in running:
        pid = replica.process.pid
        if replica.idleness.update(partial(tree, pid)) > limit and replica.ended_because is None:
            found = look(pid)
            stopped = ", because it is stopped (SIGSTOP)" if found is not None and found.is_stopped else ""
            replica.end(f"did nothing for {limit:g} s{stopped}")


def _start(plan: ReplicaPlan, number: int, arguments: Sequence[str]) -> _Running:
    owner = f"replica-{number}-{os.urandom(4).hex()}"
    return _Running(owner, start_ranks(plan.command([*arguments, "--owner", owner]), plan.environment(number)))


def _report(store: Store, replica: _Running, code: int) -> None:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    if replica.ended_because is not None:
        how = f"{replica.ended_because}, and was ended"
    say(f"{replica.owner} {how}")
    store.log("replica ended", replica=replica.owner, code=code, reason=replica.ended_because)

"""The replicas of a batch on this machine: processes, or torchruns, that are started, watched, and started again.

It knows the store and how processes end, neither shots nor models.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ..errors import InputError, S2VideoError
from ..system.launcher import LaunchPlan, torchrun_command
from ..system.terminal import say
from .store import Store

_INTERVAL = 0.2  # seconds between two looks at the replicas


@dataclass(frozen=True)
class ReplicaPlan:
    """How many replicas, of how many ranks each, on which of the machine's GPUs.

    Attributes:
        gpus: what CUDA_VISIBLE_DEVICES may name; empty: they run on the CPU.
    """

    count: int
    nproc: int
    gpus: Sequence[str] = ()

    def check(self) -> None:
        """Raise InputError for a number that makes no sense, or more ranks than GPUs."""
        if self.count < 1 or self.nproc < 1:
            raise InputError(f"--replicas and --nproc: expected values >= 1, got {self.count} and {self.nproc}")
        if self.gpus and self.count * self.nproc > len(self.gpus):
            raise InputError(
                f"--replicas {self.count} of --nproc {self.nproc} need {self.count * self.nproc} GPUs, there are "
                f"{len(self.gpus)}: start fewer"
            )

    def command(self, arguments: Sequence[str]) -> list[str]:
        if self.nproc == 1:
            return [sys.executable, "-m", "s2video", *arguments]
        return torchrun_command(LaunchPlan(self.nproc), arguments)

    def environment(self, number: int) -> Mapping[str, str]:
        """For replica `number`, counted from 1: its share of the GPUs and of the cores."""
        environment = dict(os.environ)
        if self.count * self.nproc > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (self.count * self.nproc))))
        if self.gpus:
            mine = self.gpus[(number - 1) * self.nproc : number * self.nproc]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        return environment


def visible_gpus(device: str) -> list[str]:
    """The GPUs that a run on `model.device` has here, as CUDA_VISIBLE_DEVICES names them."""
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


@dataclass
class _Signals:
    """What arrived, and who is to hear of it."""

    received: list[int] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, process: subprocess.Popen[bytes]) -> None:
        self.processes.append(process)
        if self.received:  # while it was starting
            process.send_signal(signal.SIGTERM)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C too: a batch stops at a step's end."""
        self.received.append(number)
        for process in self.processes:
            process.send_signal(signal.SIGTERM)


def supervise(store: Store, plan: ReplicaPlan, arguments: Sequence[str]) -> int | None:
    """Run replicas until no job waits or runs. One that dies is reported, its job goes back into the queue, and it is
    started again if it had drawn a job; one that did not get that far is left out.

    Args:
        arguments: of `s2video`, for every replica; its own name is added to them as `--owner NAME`.

    Returns:
        The signal that stopped it, or None.

    Raises:
        S2VideoError: jobs wait, and no replica gets as far as to draw one.
    """
    running: dict[int, _Running] = {}
    useless: set[int] = set()
    drew: set[str | None] = set()  # owners
    with _held_signals() as signals:
        while True:
            drew |= {record.owner for record in store.records()}
            for number, replica in list(running.items()):
                if (code := replica.process.poll()) is None:
                    continue
                del running[number]
                signals.processes.remove(replica.process)
                if code != 0 and not signals.received:
                    _report(store, replica, code)
                    if replica.owner not in drew:
                        useless.add(number)
            for job in store.release():
                becomes = f"failed: {job.error}" if job.error else "goes back into the queue"
                say(f"{job.name} of {job.owner} {becomes} (attempt {job.attempts})")
            states = [record.state for record in store.records()]
            if signals.received:
                if not running:
                    return signals.received[0]
            elif "waiting" in states:
                free = [n for n in range(1, plan.count + 1) if n not in running and n not in useless]
                if not free and not running:
                    raise S2VideoError(
                        f"{states.count('waiting')} videos wait, but every replica ended before it drew one: what they "
                        "said stands above"
                    )
                for number in free[: states.count("waiting")]:
                    running[number] = _start(plan, number, arguments)
                    signals.add(running[number].process)
            elif "running" not in states and not running:
                return None
            time.sleep(_INTERVAL)


def _start(plan: ReplicaPlan, number: int, arguments: Sequence[str]) -> _Running:
    owner = f"replica-{number}-{os.urandom(4).hex()}"
    process = subprocess.Popen(
        plan.command([*arguments, "--owner", owner]),
        env=plan.environment(number),
        stdin=subprocess.PIPE,  # whose end tells the replica that this process is gone
        start_new_session=True,  # Ctrl-C reaches it once, from here
    )
    return _Running(owner, process)


def _report(store: Store, replica: _Running, code: int) -> None:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    say(f"{replica.owner} {how}")
    store.log("replica ended", replica=replica.owner, code=code)


@contextmanager
def _held_signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals.pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

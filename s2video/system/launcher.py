"""A launcher for torchrun that passes on signals and returns the workers' exit code.

It knows how ranks are started, not what they do; the command for every rank is an argument.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from ..errors import InputError
from . import ranks
from .processes import end_with_parent, end_with_stdin, start_time, tied
from .terminal import say, say_error

_EXIT_CODE_FILE = "S2VIDEO_EXIT_CODE_FILE"
_FOLLOWS_STDIN = "S2VIDEO_FOLLOWS_STDIN"

MAX_PROCESSES = 1024  # on one host; more would only fill its memory
MAX_NODES = 10_000

_TORCHRUN_LIMIT = 120.0  # seconds; its store's time limit is 60 s, and that of its other ranks 30 s

# Ends with torchrun at the latest.
_END_HANGING = """
import os, signal, sys, time
pid, age, limit = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
deadline = time.monotonic() + limit
while True:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        if fields[0] == "Z" or fields[19] != age:
            break
    except OSError:
        break
    if time.monotonic() > deadline:
        print(f"s2video: torchrun did not end within {limit:.0f} s after its ranks, and was killed", file=sys.stderr)
        os.kill(pid, signal.SIGKILL)
        break
    time.sleep(0.5)
"""

_parents: list[int] = []  # the process id of torchrun, in its ranks
_untold = threading.Lock()  # free until the user was told of the launcher's end


@dataclass(frozen=True)
class LaunchPlan:
    """The number of processes on this host, and the rendezvous settings of a run on several hosts."""

    nproc: int
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str | None = None

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes

    def check(self) -> None:
        """Raise InputError for a plan that torchrun would refuse, or that would make it wait without end."""
        if not (1 <= self.nproc <= MAX_PROCESSES and 1 <= self.nnodes <= MAX_NODES):
            raise InputError(
                f"--nproc and --nnodes: expected values from 1 to {MAX_PROCESSES} and {MAX_NODES}, got {self.nproc} "
                f"and {self.nnodes}"
            )
        if self.rdzv_endpoint is not None:
            _check_endpoint(self.rdzv_endpoint)
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise InputError(f"--nnodes {self.nnodes} needs --rdzv-endpoint HOST:PORT; pass the same one on every host")
        if not 0 <= self.node_rank < self.nnodes:
            raise InputError(f"--node-rank: expected 0 to {self.nnodes - 1}, got {self.node_rank}")


def _check_endpoint(text: str) -> None:
    """Raise InputError unless text is HOST or HOST:PORT; an IPv6 address is in brackets."""
    found = re.fullmatch(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{1,5}))?", text, re.ASCII)
    if found is None or not 0 <= int(found[2] or 0) <= 65535:
        raise InputError(
            f"--rdzv-endpoint: expected HOST:PORT, the same on every host, such as node-1:29500, got {text[:80]!r}"
        )


def torchrun_command(plan: LaunchPlan, module_arguments: Sequence[str]) -> list[str]:
    """Return the command that runs `python -m s2video MODULE_ARGUMENTS` on every rank of this host."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(plan.nproc)]
    if plan.nnodes == 1 and plan.rdzv_endpoint is None:
        command.append("--standalone")
    else:
        command += ["--nnodes", str(plan.nnodes), "--node-rank", str(plan.node_rank), "--rdzv-backend", "c10d"]
        command += ["--rdzv-id", "s2video", "--rdzv-endpoint", plan.rdzv_endpoint or "localhost:0"]
    return [*command, "-m", "s2video", *module_arguments]


def launch(plan: LaunchPlan, module_arguments: Sequence[str]) -> int:
    """Run the ranks until they end. Return 0, the exit code that a worker reported, or torchrun's own.

    If this process ends in any way, torchrun and the ranks are asked to stop.
    """
    environment = dict(os.environ)
    # torchrun would give each rank one thread; divide the cores instead.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // plan.nproc)))
    with tempfile.TemporaryDirectory(prefix="s2video-launch-") as folder:
        exit_code_file = Path(folder) / "exit-code"
        environment[_EXIT_CODE_FILE] = str(exit_code_file)
        with held_signals(stops_softly=False) as signals:
            child = start_ranks(torchrun_command(plan, module_arguments), environment)
            signals.add(child)
            code = child.wait()
        if signals.received:
            return 128 + signals.received[0]
        if code != 0 and exit_code_file.exists():
            return int(exit_code_file.read_text(encoding="ascii") or code)
    if code != 0:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        say_error(
            f"torchrun {how}, and no rank could say why; torchrun's own lines above name the rank that ended first: it "
            "was killed before it had begun, or all were killed at once (out of memory? see dmesg); start again"
        )
    return code if code >= 0 else 128 - code


def start_ranks(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that is asked to stop when this process ends: by SIGTERM on Linux, and the end of its input.

    Ranks see that end if they call `follow_launcher`. Ctrl-C does not reach the program.
    """
    return subprocess.Popen(
        tied(command, signal.SIGTERM),
        env={**environment, _FOLLOWS_STDIN: "1"},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def follow_launcher() -> None:
    """Stop this rank when the process that started it has ended: torchrun, or whoever called `start_ranks`."""
    if os.environ.get(_FOLLOWS_STDIN):
        end_with_stdin(_tell)
    if ranks.launched_by_torchrun():
        _parents.append(os.getppid())
        end_with_parent(_tell)


def tell_of_launcher() -> None:
    """Say that torchrun has ended, if it has, and if that was not said before."""
    if _parents and os.getppid() != _parents[-1]:
        _tell()


def _tell() -> None:
    if ranks.speaks_for_host() and _untold.acquire(blocking=False):
        say("the program that started this run has ended; stopping")


def end_hanging_torchrun() -> None:
    """End torchrun if it does not end by itself, now that this rank fails. Returns at once; does nothing without /proc.

    If the host of torchrun's own store is gone without closing its connections, torchrun waits for it without end.
    Another launcher is left alone: it may have more to do than this run.
    """
    parent = _parents[-1] if _parents and ranks.belongs_to_torchrun() else 0
    if parent == os.getppid() and (age := start_time(parent)) is not None:
        command = [sys.executable, "-I", "-S", "-c", _END_HANGING, str(parent), age, str(_TORCHRUN_LIMIT)]
        with suppress(OSError):
            subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def report_exit_code(code: int) -> None:
    """Report a worker's exit code to the launcher, if there is one. The first report counts."""
    path = os.environ.get(_EXIT_CODE_FILE)
    if path is not None and code != 0:
        with suppress(OSError), open(path, "x", encoding="ascii") as file:
            file.write(str(code))


def report_reason(reason: str, *, seconds_ago: float = 0.0) -> None:
    """Leave the reason of a worker's failure for torchrun, which prints it in its own report. Never raises.

    Args:
        seconds_ago: when it happened. torchrun calls the earliest failure the cause of all.
    """
    path = ranks.error_file()
    if path is None or path.exists():
        return
    extra = {"py_callstack": reason, "timestamp": str(int(time.time() - seconds_ago))}
    temporary = path.with_name(f"{path.name}.part")
    with suppress(OSError):
        temporary.write_text(json.dumps({"message": {"message": reason, "extraInfo": extra}}), encoding="ascii")
        temporary.rename(path)


class Signalled(Protocol):
    """What a signal is passed on to, such as a process."""

    def send_signal(self, number: int, /) -> None: ...


@dataclass
class HeldSignals:
    """Received signals, and the processes that they are passed on to.

    Attributes:
        stops_softly: pass Ctrl-C on as SIGTERM, too.
    """

    stops_softly: bool = True
    received: list[int] = field(default_factory=list)
    processes: list[Signalled] = field(default_factory=list)

    def add(self, process: Signalled) -> None:
        self.processes.append(process)
        for number in self.received:  # while the process was starting
            process.send_signal(self._translated(number))

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        for process in self.processes:
            process.send_signal(self._translated(number))

    def _translated(self, number: int) -> int:
        """SIGTERM lets ranks stop after the current step; SIGHUP, which torchrun would pass on as it is, does not."""
        return number if number == signal.SIGINT and not self.stops_softly else signal.SIGTERM


@contextmanager
def held_signals(*, stops_softly: bool) -> Iterator[HeldSignals]:
    """Pass on Ctrl-C, SIGTERM and SIGHUP, which leave this process alive; SIGHUP stays ignored if it is."""
    signals = HeldSignals(stops_softly)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, signals.pass_on) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

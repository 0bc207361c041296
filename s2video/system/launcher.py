"""A launcher for torchrun that passes on signals and returns the workers' exit code.

It knows how ranks are started, not what they do; the command for every rank is an argument.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..errors import InputError

_EXIT_CODE_FILE = "S2VIDEO_EXIT_CODE_FILE"


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
        if self.nproc < 1 or self.nnodes < 1:
            raise InputError(f"--nproc and --nnodes: expected values >= 1, got {self.nproc} and {self.nnodes}")
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise InputError(f"--nnodes {self.nnodes} needs --rdzv-endpoint HOST:PORT; pass the same one on every host")
        if not 0 <= self.node_rank < self.nnodes:
            raise InputError(f"--node-rank: expected 0 to {self.nnodes - 1}, got {self.node_rank}")


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
    """Run the ranks until they end. Return 0, the exit code that a worker reported, or torchrun's own."""
    environment = dict(os.environ)
    # torchrun would give each rank one thread; divide the cores instead.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // plan.nproc)))
    with tempfile.TemporaryDirectory(prefix="s2video-launch-") as folder:
        exit_code_file = Path(folder) / "exit-code"
        environment[_EXIT_CODE_FILE] = str(exit_code_file)
        # A new session, so that Ctrl-C reaches torchrun once, from here, and torchrun ends the workers.
        with _held_signals() as (received, forward_to):
            child = subprocess.Popen(torchrun_command(plan, module_arguments), env=environment, start_new_session=True)
            forward_to.append(child)
            for number in received:  # those received while the child was starting
                child.send_signal(number)
            code = child.wait()
        if received:
            return 128 + received[0]
        if code != 0 and exit_code_file.exists():
            code = int(exit_code_file.read_text(encoding="ascii") or code)
    return code if code >= 0 else 128 - code


def report_exit_code(code: int) -> None:
    """Report a worker's exit code to the launcher, if there is one. The first report counts."""
    path = os.environ.get(_EXIT_CODE_FILE)
    if path is not None and code != 0:
        with suppress(OSError), open(path, "x", encoding="ascii") as file:
            file.write(str(code))


@contextmanager
def _held_signals() -> Iterator[tuple[list[int], list[subprocess.Popen[bytes]]]]:
    """Collect SIGINT and SIGTERM, and pass each on to the processes in the second list."""
    received: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received, processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Tests of ranks that are lost under torchrun with default settings: the job ends, and one line says who and where.

The ranks join, report steps and send as in a run, but load no models. The jobs run at the same time, because most of
their time is waiting.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE = 200.0  # seconds, on a busy machine; collectives have a limit of 600 s

# `python -c PLAYED WAY`: one rank. WAY says what rank 1 does in its twentieth step.
PLAYED = """
import argparse, os, sys, time
from s2video.cli import main as module

way, rank = sys.argv[1], int(os.environ["RANK"])

def tell(text):
    os.write(2, f"{text}\\n".encode())  # in one piece, next to the other ranks'

def run(arguments):
    tell(f"rank {rank} is {os.getpid()}.")
    if way == "early":
        time.sleep(1000)
    if way == "input" and rank == 1 or way == "inputs":
        from s2video.errors import InputError
        time.sleep(2 * (1 - rank))  # rank 1 fails first, and torchrun ends rank 0
        raise InputError("expected a circle, got a square")
    import torch
    import torch.distributed as dist
    from s2video.config.sections import ParallelConfig
    from s2video.errors import memory_reported
    from s2video.parallel.mesh import init_mesh
    from s2video.system.shutdown import Termination

    if way == "unjoined" and rank == 1:
        tell("not joining")
        time.sleep(1000)
    with Termination().handled() as termination, init_mesh(ParallelConfig(), "cpu") as mesh, memory_reported():
        if way == "loading":
            mesh.watch.report("loading")
            tell("at step 20.")
            if rank == 1:
                time.sleep(1000)
            mesh.watch.meet()
        with termination.deferred():
            for step in range(1, 100_000):
                mesh.watch.report("denoising", step, 100_000)
                if step == 20:
                    tell("at step 20.")
                if step == 20 and rank == 1 and way == "sleep":
                    time.sleep(1000)
                if step == 20 and rank == 1 and way == "memory":
                    raise MemoryError
                stops = torch.tensor([float(termination.requested)])
                dist.all_reduce(stops)
                if stops:
                    break
                time.sleep(0.02)
    return 0

class Parser:
    parse_args = staticmethod(lambda arguments: argparse.Namespace(run=run))

module.build_parser = lambda command: Parser()
sys.exit(module.main(["run"]))
"""

# What `s2video launch` does with the same ranks.
LAUNCHED = """
import sys
from pathlib import Path
from s2video.system import launcher

start = launcher.torchrun_command
launcher.torchrun_command = lambda plan, arguments: [*start(plan, [])[:-2], *arguments]
sys.exit(launcher.launch(launcher.LaunchPlan(2), sys.argv[1:]))
"""


class Job:
    """Processes that make one job, what they print, and the ranks' process ids."""

    def __init__(self, folder: Path, *commands: list[str]) -> None:
        self.log = folder / "log.txt"
        self.tops = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        for command in commands:
            with self.log.open("ab") as log:
                self.tops.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
                )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def errors(self) -> list[str]:
        return re.findall(r"^s2video: error: (.*)$", self.said(), re.MULTILINE)

    @property
    def ranks(self) -> dict[int, int]:
        return {int(rank): int(pid) for rank, pid in re.findall(r"^rank (\d+) is (\d+)\.$", self.said(), re.MULTILINE)}

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def wait_for(self, text: str, times: int) -> None:
        self.wait_until(lambda: self.said().count(text) >= times)

    def codes(self) -> list[int]:
        """Wait until all processes are gone; return the exit codes of those that the test started."""
        self.wait_until(lambda: all(top.poll() is not None for top in self.tops))
        self.wait_until(lambda: not any(map(exists, self.ranks.values())))
        return [top.returncode for top in self.tops]

    def close(self) -> None:
        for pid in self.ranks.values():
            if exists(pid):
                os.kill(pid, signal.SIGKILL)
        for top in self.tops:
            top.kill()
            top.wait()


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def torchrun(way: str, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "torch.distributed.run", *(arguments or ("--standalone", "--nproc-per-node", "2"))]
    return [*program, "--no-python", sys.executable, "-c", PLAYED, way]


def node(way: str, number: int, port: int) -> list[str]:
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "two"]
    meet += ["--rdzv-conf", f"is_host={1 - number}"]  # the first one holds the store
    return torchrun(way, "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number), *meet)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    port = free_port()
    launched = [sys.executable, "-c", LAUNCHED, "--no-python", sys.executable, "-c", PLAYED, "steps"]
    commands = {
        "loading": [torchrun("loading")],
        "sleep": [torchrun("sleep")],
        "node": [node("steps", 0, port), node("steps", 1, port)],
        "stop": [torchrun("steps")],
        "kill": [torchrun("steps")],
        "memory": [torchrun("memory")],
        "early": [torchrun("early")],
        "input": [torchrun("input")],
        "inputs": [torchrun("inputs")],
        "unjoined": [torchrun("unjoined")],
        "term": [torchrun("steps")],
        "agent": [torchrun("steps")],
        "launch": [launched],
        "hangup": [launched],
    }
    made: dict[str, Job] = {}
    try:
        for name, command in commands.items():
            made[name] = Job(tmp_path_factory.mktemp(name), *command)
        # The faults come as soon as a job is ready, so that the time limits of all jobs pass together.
        for name, fault in FAULTS.items():
            text, times = READY.get(name, ("at step 20.", 2))
            made[name].wait_for(text, times)
            fault(made[name])
        yield made
    finally:
        for job in made.values():
            job.close()


def stop_node(job: Job) -> None:
    """Stop torchrun and rank of the node that does not hold the store: nothing answers, and no connection is closed."""
    for pid in (job.tops[1].pid, job.ranks[1] if is_child(job.ranks[1], job.tops[1].pid) else job.ranks[0]):
        os.kill(pid, signal.SIGSTOP)


def is_child(pid: int, parent: int) -> bool:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent


READY = {"early": (" is ", 2), "unjoined": ("not joining", 1)}  # instead of the twentieth step
FAULTS: dict[str, Callable[[Job], None]] = {
    "sleep": lambda job: None,
    "loading": lambda job: None,
    "memory": lambda job: None,
    "node": stop_node,
    "stop": lambda job: os.kill(job.ranks[1], signal.SIGSTOP),
    "kill": lambda job: os.kill(job.ranks[1], signal.SIGKILL),
    "early": lambda job: os.kill(job.ranks[1], signal.SIGKILL),
    "unjoined": lambda job: os.kill(job.ranks[1], signal.SIGKILL),
    "term": lambda job: job.tops[0].terminate(),
    "agent": lambda job: job.tops[0].kill(),
    "launch": lambda job: job.tops[0].kill(),
    "hangup": lambda job: job.tops[0].send_signal(signal.SIGHUP),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "kill",
            r"lost rank 1 \(last at: denoising step \d+ of 100000\), which ended without a message: killed .*start",
        ),
        ("early", r"lost rank 1 \(last at: starting\), which ended without a message: killed .*start again"),
        ("unjoined", r"lost rank 1 \(last at: starting\), which ended without a message: killed .*start again"),
        (
            "stop",
            r"no heartbeat for 20 s from rank 1 \(last at: denoising step \d+ of 100000.*\): the process is stopped",
        ),
        (
            "sleep",
            r"a step took longer than 30 s: rank 1 \(last at: denoising step 20 of 100000, in <string>:\d+\) is behind",
        ),
        (
            "loading",
            r"rank 1 \(last at: loading, in <string>:\d+\) has done nothing for 60 s, as if asleep; .*start again",
        ),
        ("memory", r"rank 1: this machine is out of memory \(Python could not allocate\); use fewer ranks"),
    ],
)
def test_a_lost_rank_is_named_and_ends_the_job(jobs: dict[str, Job], name: str, expected: str) -> None:
    job = jobs[name]
    assert job.codes() == [1]
    (line,) = job.errors()
    assert re.match(expected, line), line
    # torchrun's own report calls it the cause
    cause = job.said().partition("Root Cause")[2]
    assert line.removeprefix("rank 1: ").partition("; rank")[0] in cause, cause


@pytest.mark.parametrize("name", ["input", "inputs"])
def test_input_that_one_rank_or_all_refuse_is_reported_once(jobs: dict[str, Job], name: str) -> None:
    """The first rank of a host speaks for all; torchrun would end it before that if another one had ended first."""
    job = jobs[name]
    assert job.codes() == [1]
    assert job.errors() == ["expected a circle, got a square"]


def test_a_host_that_is_gone(jobs: dict[str, Job]) -> None:
    """The other host's rank ends, and so does its torchrun; what is stopped stays, as on a host without power."""
    job = jobs["node"]
    job.wait_until(lambda: job.tops[0].poll() is not None)
    assert job.tops[0].returncode == 1
    (line,) = job.errors()
    assert re.match(
        r"no heartbeat for 20 s from rank \d \(last at: denoising step \d+ .*\): check its host and the", line
    )


def test_a_stop_on_request_is_no_loss(jobs: dict[str, Job]) -> None:
    """All ranks receive SIGTERM, and leave one after the other."""
    job = jobs["term"]
    job.codes()
    assert job.errors() == []


@pytest.mark.parametrize("name", ["agent", "launch"])
def test_ranks_end_with_the_program_that_started_them(jobs: dict[str, Job], name: str) -> None:
    job = jobs[name]
    assert job.codes() == [-signal.SIGKILL]
    assert "the program that started this run has ended; stopping" in job.said() or job.errors()


def test_a_closed_terminal_stops_a_launched_run(jobs: dict[str, Job]) -> None:
    job = jobs["hangup"]
    assert job.codes() == [128 + signal.SIGHUP]
    assert job.errors() == []

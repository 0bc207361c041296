"""Tests of ranks that die, hang or fail in real processes: every process ends, one line names the rank and its
activity, and no file with a final name is partial."""

import json
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
import yaml
from tiny import PROMPT, tiny_config

DEADLINE = 30.0  # seconds from the fault until the last rank has ended
HEARTBEAT = 8.0
NUM_STEPS = 200

# `python -c MISBEHAVE KIND RANK ...`: that rank does something at the end of its fourth step, or to its files.
MISBEHAVE = """
import resource, sys, time
from datetime import timedelta
from os import environ
from torch.distributed import distributed_c10d as c10d
from s2video.cli.main import main
from s2video.engine import engine
from s2video.errors import S2VideoError

kind, rank = sys.argv[1:3]
mine, sample = environ["RANK"] == rank, engine.sample
if kind == "full" and mine:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # latents have 45 KiB

def misbehaving(*arguments, on_step, **more):
    def wrapped(done, total, latents):
        if done == 4 and kind == "hang":
            for group in list(c10d._world.pg_map):
                c10d._set_pg_timeout(timedelta(seconds=3), group)
        if done == 4 and mine and kind == "raise":
            raise S2VideoError("out of order")
        if done == 4 and mine and kind == "hang":
            time.sleep(1000)
        on_step(done, total, latents)
    return sample(*arguments, on_step=wrapped, **more)

engine.sample = misbehaving
sys.exit(main(sys.argv[3:]))
"""


class Job:
    """The ranks of one job, without torchrun, which would end the other ranks itself."""

    def __init__(self, folder: Path, checkpoint: Path, world_size: int, program: list[str], *arguments: str) -> None:
        config = folder / "tiny.yaml"
        config.write_text(yaml.safe_dump(tiny_config(checkpoint).model_dump(mode="json")), encoding="utf-8")
        self.output = folder / "made" / "clip.mp4"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, *program, "generate", "--config", str(config), "--prompt", PROMPT, "--plain"]
        command += ["--output", str(self.output), "--set", f"parallel.heartbeat_seconds={HEARTBEAT}", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
        self.processes = []
        for rank, log in enumerate(self._logs):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            with log.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(command, env=environment | ranks, stderr=file, stdout=subprocess.DEVNULL)
                )

    def said(self, rank: int) -> str:
        return self._logs[rank].read_text(encoding="utf-8")

    def errors(self) -> list[str]:
        """Return the error lines of s2video from all ranks."""
        lines = [line for rank in range(len(self._logs)) for line in self.said(rank).splitlines()]
        return [line for line in lines if line.startswith("s2video: error:")]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert all(process.poll() is None for process in self.processes), "the job ended too early"
            time.sleep(0.05)

    def codes(self, *, without: int | None = None, within: float = DEADLINE) -> list[int]:
        """Wait until all ranks but one have ended, and return their exit codes."""
        deadline = time.monotonic() + within
        awaited = [process for rank, process in enumerate(self.processes) if rank != without]
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in awaited]

    def files(self) -> list[str]:
        """Names of the files that were made, without the lock that kill -9 leaves."""
        folder = self.output.parent
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        return [name for name in found if name != ".clip.lock"]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def start(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(world_size: int, *arguments: str, program: tuple[str, ...] = ("-m", "s2video")) -> Job:
        jobs.append(Job(tmp_path, tiny_checkpoint, world_size, list(program), *arguments))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


def many_steps(job: Job) -> bool:
    return f"step {NUM_STEPS // 10}/{NUM_STEPS}" in job.said(0)


@pytest.mark.parametrize(
    ("number", "world_size", "victim"),
    [(signal.SIGKILL, 2, 0), (signal.SIGKILL, 3, 1), (signal.SIGSTOP, 2, 0), (signal.SIGSTOP, 2, 1)],
)
def test_a_rank_that_is_gone_or_stopped(
    start: Callable[..., Job], number: signal.Signals, world_size: int, victim: int
) -> None:
    """If rank 0 dies, so does the store."""
    job = start(world_size, "--set", f"sampling.num_inference_steps={NUM_STEPS}")
    job.wait_until(lambda: many_steps(job))
    job.processes[victim].send_signal(number)
    assert job.codes(without=victim) == [1] * (world_size - 1)
    (line,) = job.errors()
    assert re.search(rf"rank {victim} .*last at: denoising step \d+ of {NUM_STEPS}", line), line
    assert job.files() == []


def test_a_rank_that_raises(start: Callable[..., Job]) -> None:
    job = start(2, program=("-c", MISBEHAVE, "raise", "1"))
    job.wait_until(lambda: "step 3/6" in job.said(0))
    assert job.codes() == [1, 1]
    assert job.errors() == ["s2video: error: rank 1: out of order"]
    assert job.files() == []


def test_a_main_thread_that_hangs(start: Callable[..., Job]) -> None:
    """The hanging rank's heartbeat continues; the collective's time limit detects it."""
    job = start(2, program=("-c", MISBEHAVE, "hang", "1"))
    job.wait_until(lambda: "step 4/6" in job.said(0))
    assert job.codes() == [1, 1]
    (line,) = job.errors()
    assert re.search(r"rank 1 \(last at: denoising step 4 of 6, in <string>:\d+\) is behind", line), line
    assert "Traceback" not in job.said(0)
    assert job.files() == []


def test_a_full_disk(start: Callable[..., Job]) -> None:
    """The main rank's files cannot grow: the latents fit, the video does not."""
    job = start(2, "--set", "output.crf=0", program=("-c", MISBEHAVE, "full", "0"))
    job.wait_until(lambda: "step 6/6" in job.said(0))
    assert job.codes() == [1, 1]
    (line,) = job.errors()
    assert "ffmpeg ended with status" in line
    assert job.files() == ["clip.latents.safetensors"]


def test_killed_in_the_midst_of_encoding(start: Callable[..., Job], tmp_path: Path) -> None:
    """--resume decodes the denoised latents, and keeps a complete video."""
    arguments = ["--set", "sampling.num_frames=161", "--set", "checkpoint.every_seconds=600"]
    job = start(2, *arguments, "--set", "sampling.num_inference_steps=2")
    job.wait_until(lambda: any(re.fullmatch(r"\.clip\.\w+\.mp4", name) for name in job.files()))
    time.sleep(1.5)  # the other rank reads the new phase with the next heartbeat
    job.processes[0].kill()
    assert job.codes(without=0) == [1]
    (line,) = job.errors()
    assert "rank 0 was last at: decoding" in line
    whole = [name for name in job.files() if not name.startswith(".")]
    assert whole == ["clip.checkpoint.safetensors", "clip.latents.safetensors"]

    again = start(1, *arguments, "--set", "sampling.num_inference_steps=2", "--resume")
    assert again.codes(within=240) == [0]
    assert "resuming after step 2" in again.said(0) and "step 2/2" not in again.said(0)
    assert again.files() == ["clip.json", "clip.mp4"]  # the hidden file of the dead process is removed
    assert json.loads(again.output.with_suffix(".json").read_text())["resumed_after_step"] == 2

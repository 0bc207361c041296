"""A batch of tiny videos for tests: its run file, the processes that work on it, and what they leave."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from tiny import MAX_SEQUENCE_LENGTH, PROMPT

from s2video.batch.store import Record, Store
from s2video.cli.main import main

REPOSITORY = Path(__file__).parents[2]


class Run:
    """A run file of tiny videos, and the processes that work on it."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.file = folder / "run.yaml"
        self.folder = folder / "out"
        self.log = folder / "log.txt"
        self.values: dict[str, Any] = {
            "model": {"path": str(checkpoint), "device": "cpu"},
            "sampling": {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 4}
            | {"max_sequence_length": MAX_SEQUENCE_LENGTH},
            "guidance": {"drop_ratio": 0.3},
            "folder": str(self.folder),
            "shots": [PROMPT],
        }
        self.store = Store(self.folder)
        self.processes: list[subprocess.Popen[bytes]] = []

    def write(self, **values: Any) -> None:
        self.values |= values
        self.file.write_text(yaml.safe_dump(self.values), encoding="utf-8")

    def main(self, *arguments: str) -> int:
        return main(["batch", str(self.file), *arguments])

    def start(self, *arguments: str, command: tuple[str, ...] = ("-m", "s2video", "batch")) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command, str(self.file), "--plain", *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.file.parent,
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def records(self) -> dict[str, Record]:
        return {record.name: record for record in self.store.records()}

    def states(self) -> dict[str, str]:
        return {name: record.state for name, record in self.records().items()}

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "batch.events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_until(self, condition: Callable[[], Any], is_alive: Callable[[], bool]) -> None:
        while not condition():
            assert is_alive(), self.said()
            time.sleep(0.02)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("batch."))


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [grandchild for child in map(int, found) for grandchild in (child, *children(child))]


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started, at once and without a word."""
    for pid in [process.pid, *children(process.pid)] if process.poll() is None else []:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_sums(run: Run) -> None:
    """Every file is listed, and is what the list says."""
    lines = (run.folder / "batch.sha256").read_text().splitlines()
    listed = {name: value for value, name in (line.split("  ") for line in lines)}
    made = [path for path in run.folder.rglob("*") if path.is_file() and not path.name.startswith("batch.")]
    assert listed == {path.relative_to(run.folder).as_posix(): digest(path) for path in made}


def make_batch(file: Path, log: Path) -> None:
    """In a process of its own: what `s2video batch` does as the one rank of a torchrun."""
    with log.open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ["WORLD_SIZE"] = "1"
    sys.exit(main(["batch", str(file), "--plain"]))

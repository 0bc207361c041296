"""A batch on a Ray cluster of several nodes on this machine, of which one is killed and another one joins meanwhile.

    python tools/ray_faults.py runs/ray-faults    # needs the extra ray; takes many minutes

Makes the videos once with an undisturbed local batch, and once on the cluster. Then it compares: all videos are whole,
none was recorded twice, and their files are equal to the bit. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from s2video.batch.status import read_status
from s2video.system.files import sha256
from s2video.system.processes import kill_tree, tree

ROOT = Path(__file__).resolve().parents[1]
_OBJECTS = 80 * 2**20  # bytes of shared memory of a node, near the least that Ray takes
_SETTINGS = {  # the defaults take most of a minute to find that a node is gone
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A Ray cluster on this machine, as a context manager: a head without cores, and nodes that come and go."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self.nodes: list[Any] = []

    def __enter__(self) -> Nodes:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": _OBJECTS, "include_dashboard": False, "_system_config": _SETTINGS}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self._cluster.address)

    def add(self) -> None:
        """Let a node join."""
        self.nodes.append(self._cluster.add_node(wait=False, num_cpus=self._cores, object_store_memory=_OBJECTS))

    def busy(self) -> list[Any]:
        """Return the nodes on which a rank makes videos."""
        return [node for node in self.nodes if any(map(_is_rank, tree(_raylet(node))))]

    def kill(self, node: Any) -> None:
        """End all processes of a node at once, as a power failure does."""
        kill_tree(_raylet(node))
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_rank(pid: int) -> bool:
    try:
        return b"ray::Rank.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@dataclass(frozen=True)
class Trial:
    """A batch to make in two ways.

    Attributes:
        settings: of the run file, without `folder`.
        nproc: ranks of a replica.
    """

    work: Path
    settings: Mapping[str, Any]
    nproc: int

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the batch in the folder `name`; what it says goes to a file next to it."""
        self.work.mkdir(parents=True, exist_ok=True)
        run_file = self.work / f"{name}.yaml"
        run_file.write_text(yaml.safe_dump({**self.settings, "folder": str(self.work / name)}), encoding="utf-8")
        command = [sys.executable, "-m", "s2video", "batch", str(run_file), "--nproc", str(self.nproc), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (self.work / f"{name}.txt").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def done(self, name: str) -> int:
        """Return how many videos are done."""
        return len(self.events(name, "done"))

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind."""
        path = self.work / name / "batch.events.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def differences(self, name: str, expected: str) -> list[str]:
        """Return what is wrong with a batch, compared with another one, as sentences."""
        problems = []
        status = read_status(self.work / name)
        if status.count("done") != len(status.records):
            problems.append(f"expected {len(status.records)} videos, got {status.count('done')}")
        twice = [job for job, n in Counter(e["job"] for e in self.events(name, "done")).items() if n > 1]
        problems += [f"{job} was recorded twice" for job in twice]
        for record in read_status(self.work / expected).records:
            paths = [self.work / folder / record.name for folder in (name, expected)]
            if not all(path.exists() for path in paths) or sha256(paths[0]) != sha256(paths[1]):
                problems.append(f"{record.name} is missing, or differs from the one of the undisturbed batch")
        return problems


def disturb(nodes: Nodes, trial: Trial, name: str, process: subprocess.Popen[bytes], *, kill_after: int) -> None:
    """Kill a node that is at work when some videos are done, let another one join, and wait for the batch's end."""
    _wait(lambda: trial.done(name) >= kill_after and nodes.busy(), process)
    nodes.kill(nodes.busy()[0])
    nodes.add()
    process.wait()


def _wait(condition: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"the batch ended too early, with code {process.returncode}")
        time.sleep(0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trial of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="a new folder for the videos")
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--nproc", type=int, default=2, help="ranks of a replica, and cores of a node")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--collect", action="store_true", help="as if the nodes did not share the folder")
    options = parser.parse_args(arguments)
    colors = ["red", "green", "blue", "yellow"]
    shots = [f"a large {colors[i % 4]} circle moving left on a gray background" for i in range(options.videos)]
    settings = {"model": {"path": "shapes-wan", "device": "cpu"}, "shots": shots}
    settings |= {"sampling": {"num_inference_steps": options.steps}, "parallel": {"heartbeat_seconds": 120}}
    trial = Trial(options.work.resolve(), settings, options.nproc)
    started = time.monotonic()
    if trial.start("undisturbed").wait() != 0:
        raise SystemExit(f"the undisturbed batch failed; see {trial.work / 'undisturbed.txt'}")
    print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
    started = time.monotonic()
    with Nodes(options.nproc) as nodes:
        for _ in range(options.nodes):
            nodes.add()
        ray = ["--ray", nodes.address, "--replicas", str(options.nodes)]
        process = trial.start("disturbed", *ray, "--ray-files", "collect" if options.collect else "auto")
        disturb(nodes, trial, "disturbed", process, kill_after=options.videos // 4)
    problems = trial.differences("disturbed", "undisturbed")
    released = trial.events("disturbed", "released")
    print(f"on {options.nodes} nodes, one killed and one added: {time.monotonic() - started:.0f} s")
    print(f"exit code {process.returncode}, {len(released)} videos were begun again by another replica")
    print("\n".join(problems) or f"{options.videos} videos are whole, none was made twice, and all bits are equal")
    return 1 if problems or process.returncode else 0


if __name__ == "__main__":
    sys.exit(main())

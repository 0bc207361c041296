"""Measure what clients that poll a server cost: the seconds of a replica's steps with 200 of them, and with none.

    python tools/serve_polling.py --work runs/serve-polling -o runs/serve-polling.json      # takes minutes

A server makes videos with the embedded model. In turns, it has no clients, and 200 clients that ask for the running
video every 2 s, each on a connection of its own. Every step is timed, by the clock and in CPU seconds of the replica's
process; the server's CPU seconds are read from the system. Clients run on the same machine, so with two cores and other
work the steps by the clock show more than a server would with clients elsewhere.

Exit codes: 0 the median of the steps, by the clock, rises by less than 5 %; 1 it does not, or answers failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from faults.driver import make_parser
from faults.started import environment
from serving.client import Client, free_port

from s2video.system.files import write_json

POLLING = Path(__file__).resolve().parent / "serving" / "polling.py"
MOST = 0.05  # by which the median step may rise
STEPS = 200
_TICK = os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    work: Path = arguments.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    steps, port = work / "steps.txt", free_port()
    command = [sys.executable, "-m", "s2video", "serve", "--folder", str(work / "jobs"), "--port", str(port)]
    with (work / "said.txt").open("wb") as said:
        server = subprocess.Popen(command, env=environment(step_times=steps), stdout=said, stderr=said)
    try:
        turns = list(_turns(arguments, Client(f"http://127.0.0.1:{port}"), port, steps, server.pid))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    report = summary(turns, read_steps(steps)) | {"clients": arguments.clients, "every": arguments.every}
    print(json.dumps(report, indent=1))
    if arguments.output is not None:
        write_json(arguments.output, report)
    return 0 if report["rise"]["wall"] < MOST and report["polls"]["failed"] == 0 else 1


@dataclass(frozen=True)
class Turn:
    """A stretch of time with clients or without.

    Attributes:
        start, end: monotonic seconds.
        server: CPU seconds of the server.
        polls: what the clients counted; empty without clients.
    """

    polled: bool
    start: float
    end: float
    server: float
    polls: dict[str, float]


@dataclass(frozen=True)
class Step:
    """One step of a job: when it ended, and how long it took by the clock and in CPU seconds of its process."""

    at: float
    wall: float
    cpu: float


def _turns(arguments: argparse.Namespace, client: Client, port: int, steps: Path, server: int) -> Iterator[Turn]:
    """Let clients poll and not poll, in turns, and keep the replica busy."""
    client.wait()
    video = _next_video(client)
    while not steps.exists() or len(read_steps(steps)) < 5:  # the model is loaded, and warm
        time.sleep(0.2)
    for number in range(2 * arguments.turns):
        if json.loads(client.get(f"/v1/videos/{video}") or b"{}")["progress"] > 50:
            queued, video = video, _next_video(client)
            print(f"{queued} is half done, {video} follows", file=sys.stderr)
        polled = number % 4 in (1, 2)  # off, on, on, off: a drift of the machine's load meets both
        start, before = time.monotonic(), _cpu_seconds(server)
        polls: dict[str, float] = {}
        if polled:
            polls = _poll(arguments, port, video)
        else:
            time.sleep(arguments.seconds)
        yield Turn(polled, start, time.monotonic(), _cpu_seconds(server) - before, polls)


def _next_video(client: Client) -> str:
    fields = {"prompt": "a large red circle moving left on a gray background", "seconds": 2}
    video = client.create(fields | {"sampling": {"num_inference_steps": STEPS}})
    assert video is not None, "the server is away"
    return str(video["id"])


def _poll(arguments: argparse.Namespace, port: int, video: str) -> dict[str, float]:
    words = ["127.0.0.1", str(port), f"/v1/videos/{video}", str(arguments.clients), str(arguments.every)]
    clients = subprocess.Popen(
        [sys.executable, str(POLLING), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    time.sleep(arguments.seconds)
    said, _ = clients.communicate()
    return dict(json.loads(said))


def read_steps(file: Path) -> list[Step]:
    """Return the steps of all jobs, without each job's first, which has no beginning."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        Step(float(after[2]), float(after[2]) - float(before[2]), float(after[3]) - float(before[3]))
        for before, after in pairwise(lines)
        if len(after) == 4 and before[0] == after[0] and int(after[1]) == int(before[1]) + 1
    ]


def summary(turns: Sequence[Turn], steps: Sequence[Step]) -> dict[str, Any]:
    """Return the medians of steps with clients and without, by how much they differ, and what polls cost."""
    report: dict[str, Any] = {"rise": {}}
    for polled in (False, True):
        inside = [
            step
            for step in steps
            if any(turn.polled is polled and turn.start < step.at - step.wall and step.at < turn.end for turn in turns)
        ]
        medians = {kind: statistics.median(getattr(step, kind) for step in inside) for kind in ("wall", "cpu")}
        report["polled" if polled else "alone"] = {"steps": len(inside)} | medians
    for kind in ("wall", "cpu"):
        report["rise"][kind] = report["polled"][kind] / report["alone"][kind] - 1
    answers = sum(turn.polls["answers"] for turn in turns if turn.polled)
    idle = sum(turn.server for turn in turns if not turn.polled)
    share = sum(t.end - t.start for t in turns if t.polled) / sum(t.end - t.start for t in turns if not t.polled)
    busy = sum(turn.server for turn in turns if turn.polled)
    report["polls"] = {
        "answers": answers,
        "failed": sum(turn.polls["failed"] for turn in turns if turn.polled),
        "median_seconds": statistics.median(turn.polls["median"] for turn in turns if turn.polled),
        "server_cpu_seconds_each": (busy - share * idle) / answers if answers else None,
    }
    return report


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__ or "", work="what is in it is removed first")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two polls of a client")
    parser.add_argument("--turns", type=int, default=6, help="with clients, and as many without")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Make a batch of small videos while its processes are killed, its disk is filled and its clock jumps; check the end.

    python tools/chaos.py --work runs/chaos -o runs/chaos.json                     # takes an hour or more
    python tools/chaos.py --work runs/chaos --videos 20 --replicas 1 --nproc 1     # takes minutes

Rank, replica, supervisor and encoder are killed while they load, denoise, decode, encode and rename; the supervisor
gets SIGTERM; the disk is filled (on a small file system in memory, where this user may mount one); the clock jumps.
After each end, the same command is started again, as a person would. At the end every video must be whole, its own,
made once, and to the bit that of the same batch without faults; nothing else may be left. The same --seed gives the
same faults. After an interruption, the same command continues. The report is also written as text, next to the JSON
file.

Exit codes: 0 all this holds, 1 it does not; what does not is printed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from faults import orders
from faults.driver import PROMPTS, Driver, add_options, make_parser, write_report
from faults.hooks import BALLAST
from faults.orders import Order
from faults.started import orphans, start
from faults.verdict import as_text, find_faults

from s2video.batch.run_file import Batch, load_batch
from s2video.batch.store import Store
from s2video.errors import S2VideoError

DISK_MB = 64
FULL_SECONDS = 3.0  # how long the disk is full
MAX_STARTS = 500


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    os.nice(arguments.nice)
    work: Path = arguments.work.absolute()
    (work / "chaos").mkdir(parents=True, exist_ok=True)
    planned = orders.plan_orders(arguments.rounds, arguments.seed, arguments.nproc)[: arguments.faults]
    batch, calm = (_written(work, name, arguments) for name in ("disturbed", "undisturbed"))
    if not _on_small_disk(batch.folder):
        planned = [order for order in planned if order.victim != "disk"]
    (work / "chaos" / "disk").write_text(str(batch.folder))
    run = Disturbed(work, batch, planned, _command(work / "disturbed.yaml", arguments))
    run.make()
    said = work / "chaos" / "undisturbed.txt"
    if start(_command(work / "undisturbed.yaml", arguments), said, None).wait() != 0:
        raise SystemExit(f"the undisturbed run failed, see {said}")
    found = [*run.problems(), *find_faults(batch, calm.folder)]
    report = run.facts() | {
        "videos": len(batch.jobs),
        "size": "{width}x{height}x{num_frames}".format(**vars(batch.jobs[0].config.sampling)),
        "replicas": arguments.replicas,
        "ranks": arguments.nproc,
        "seed": arguments.seed,
        "found": found,
        "orders": [asdict(order) for order in planned],
    }
    return write_report(report, as_text(report, planned), arguments.output)


class Disturbed:
    """The batch under faults: starts it, places one order at a time, and frees the disk."""

    def __init__(self, work: Path, batch: Batch, planned: Sequence[Order], command: Sequence[str]) -> None:
        self._chaos = work / "chaos"
        self._batch = batch
        self._planned = planned
        self._command = command
        self._store = Store(batch.folder)
        self._driver = Driver(planned, self._chaos)
        self._process: subprocess.Popen[bytes] | None = None
        self._full_since: float | None = None

    def make(self) -> None:
        """Make the batch. Returns when it ends with code 0, or when it was started too often."""
        began = time.monotonic()
        try:
            while len(self._codes()) < MAX_STARTS:
                if self._process is None or (code := self._process.poll()) is not None:
                    if self._process is not None:
                        orders.log(self._chaos, event="end", code=code)
                        if code == 0:
                            return
                    self._process = start(self._command, self._chaos / "said.txt", self._chaos)
                self._driver.drive(self._process, self._num_done())
                self._free_disk()
                time.sleep(0.1)
        finally:
            orders.log(self._chaos, event="seconds", seconds=round(time.monotonic() - began))
            self._end()

    def problems(self) -> list[str]:
        rest = self._driver.rest
        problems = [f"{len(rest)} faults did not happen: use more videos"] if rest else []
        return problems + [f"process {pid} outlived the batch" for pid in orphans(self._chaos)]

    def facts(self) -> dict[str, Any]:
        """Return what is known about the run, as JSON."""
        lines = orders.logged(self._chaos)
        taken = [line["number"] for line in lines if line["event"] == "fault"]
        return {
            "faults": len(taken),
            "kills": sum(order.kills and order.number in taken for order in self._planned),
            "starts": len(self._codes()),
            "codes": self._codes(),
            "seconds": sum(int(str(line["seconds"])) for line in lines if line["event"] == "seconds"),
        }

    def _codes(self) -> list[Any]:
        return [line["code"] for line in orders.logged(self._chaos) if line["event"] == "end"]

    def _num_done(self) -> int:
        with suppress(S2VideoError):
            return sum(record.state == "done" for record in self._store.records()) if self._store.path.exists() else 0
        return -1  # not known now

    def _free_disk(self) -> None:
        ballast = self._batch.folder / BALLAST
        if not ballast.exists():
            self._full_since = None
        elif self._full_since is None:
            self._full_since = time.monotonic()
        elif time.monotonic() - self._full_since > FULL_SECONDS:
            ballast.unlink()

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        (self._batch.folder / BALLAST).unlink(missing_ok=True)


def _written(work: Path, name: str, arguments: argparse.Namespace) -> Batch:
    """Write a run file, and return its batch."""
    shots = PROMPTS[: arguments.videos]
    sampling = {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": arguments.steps}
    values = {
        "model": {"path": arguments.model, "device": "cpu"},
        "sampling": sampling | ({"max_sequence_length": arguments.text_length} if arguments.text_length else {}),
        "checkpoint": {"every_seconds": 0.01},
        "folder": str(work / name),
        "shots": shots,
        "seeds": -(-arguments.videos // len(shots)),
    }
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_batch(file)


def _command(run_file: Path, arguments: argparse.Namespace) -> list[str]:
    sizes = ["--replicas", str(arguments.replicas), "--nproc", str(arguments.nproc)]
    return [sys.executable, "-m", "s2video", "batch", str(run_file), "--plain", "--retry-failed", *sizes]


def _on_small_disk(folder: Path) -> bool:
    """Mount a small file system at the batch's folder, if this user may; return whether it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(folder) and not any(folder.iterdir()):
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        with suppress(OSError):
            subprocess.run(command, capture_output=True)
    return os.path.ismount(folder)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__ or "", work="the same one continues a run")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="how often each kind of fault happens")
    parser.add_argument("--faults", type=int, help="only the first ones")
    add_options(parser, nproc=2)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Ask a server for videos while it and its replicas are killed; check that each is made once, and is the right one.

    python tools/serve_chaos.py --work runs/serve-chaos -o runs/serve-chaos.json      # takes many minutes

Clients ask for 20 videos of two models, and look at them until all have ended. Meanwhile `s2video serve` and its
replicas are killed by SIGKILL, ten times in all, at random moments while they load, denoise, decode and encode. A
killed server is started again, as an operator would; the clients ask again with the same Idempotency-Key. At the end
every video must be completed, its own, made once, and to the bit that of a server without faults; nothing else may be
left. The same --seed gives the same kills. The report is also written as text, next to the JSON file.

Exit codes: 0 all this holds, 1 it does not; what does not is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from faults import orders
from faults.driver import PROMPTS, Driver, add_options, make_parser, write_report
from faults.orders import Order
from faults.started import REPOSITORY, orphans, start
from serving import verdict
from serving.client import Client, free_port

PHASES = ("loading", "denoising", "decoding", "encoding")
LONGEST_DELAY = 0.2  # seconds from the beginning of a phase's part to the kill
MAX_STARTS = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    os.nice(arguments.nice)
    work: Path = arguments.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    (work / "chaos").mkdir(parents=True)
    _write_models(work, arguments)
    wanted = requests(arguments.jobs, arguments.steps)
    planned = plan_kills(arguments.kills, arguments.seed, arguments.nproc)
    disturbed = Run(work / "disturbed", wanted, arguments, planned)
    disturbed.make()
    calm = Run(work / "undisturbed", wanted, arguments)
    calm.make()
    found = [
        *disturbed.problems(),
        *calm.problems(),
        *verdict.find_faults(disturbed.folder, disturbed.made, calm.made, wanted),
    ]
    report = {
        "videos": len(wanted),
        "replicas": arguments.replicas,
        "ranks": arguments.nproc,
        "seed": arguments.seed,
        "kills": sum(order not in disturbed.rest for order in planned),
        "starts": disturbed.starts,
        "seconds": round(disturbed.seconds),
        "found": found,
        "orders": [asdict(order) for order in planned],
    }
    return write_report(report, verdict.as_text(report, planned), arguments.output)


def requests(number: int, steps: int) -> list[dict[str, Any]]:
    """Return what the clients ask for: different prompts and seeds, two models in turns."""
    return [
        {
            "prompt": PROMPTS[index % len(PROMPTS)],
            "model": "ab"[index % 2],
            "size": "32x32",
            "sampling": {"num_frames": 5, "num_inference_steps": steps},
            "seed": index,
        }
        for index in range(number)
    ]


def plan_kills(number: int, seed: int, num_ranks: int) -> list[Order]:
    """Return kills that are spread over the phases, of the server and of a replica in turns, in a random order."""
    chosen = random.Random(seed)
    victims, phases = ("supervisor", "replica"), len(PHASES)
    kinds = [(PHASES[index % phases], victims[(index + index // phases) % 2]) for index in range(number)]
    chosen.shuffle(kinds)
    return [
        Order(
            index,
            phase,
            victim,
            rank=chosen.randrange(num_ranks) if phase in orders.BY_ALL_RANKS else 0,
            skip=0 if phase == "loading" else chosen.randrange(3),
            delay=round(chosen.uniform(0.001, LONGEST_DELAY), 3),
        )
        for index, (phase, victim) in enumerate(kinds)
    ]


class Run:
    """One server and what its clients ask for, with kills or without.

    Attributes:
        made: what the clients read about each video, by its number.
        starts: how often the server was started.
        rest: kills that were not carried out.
    """

    def __init__(
        self,
        folder: Path,
        wanted: Sequence[Mapping[str, Any]],
        arguments: argparse.Namespace,
        kills: Sequence[Order] = (),
    ) -> None:
        self.folder, self.starts, self.seconds = folder, 0, 0.0
        self.made: dict[int, verdict.Made] = {}
        self.listed: dict[str, str] = {}
        self._code: int | None = None  # with which the server ended at last
        self._wanted = wanted
        self._chaos = folder.parent / "chaos" if kills else None
        self._driver = None if self._chaos is None else Driver(kills, self._chaos)
        port = free_port()
        self._client = Client(f"http://127.0.0.1:{port}")
        self._command = [sys.executable, "-m", "s2video", "serve", "--folder", str(folder), "--port", str(port)]
        self._command += [word for name in "ab" for word in ("--model", f"{name}={folder.parent / name}.yaml")]
        self._command += ["--replicas", str(arguments.replicas), "--nproc", str(arguments.nproc), "--plain"]
        self._command += ["--loaded", str(arguments.loaded)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def rest(self) -> list[Order]:
        return [] if self._driver is None else self._driver.rest

    def make(self) -> None:
        """Ask for all videos, and wait until they have ended."""
        start = time.monotonic()
        ids: dict[int, str] = {}
        ended: set[int] = set()
        try:
            while len(ended) < len(self._wanted):
                self._keep_running()
                for index, fields in enumerate(self._wanted):
                    if index not in ids and (video := self._client.create(fields, key=f"shot {index}")) is not None:
                        ids[index] = video["id"]
                states = self._client.states()
                ended = {index for index, name in ids.items() if states.get(name) in ("completed", "failed")}
                if self._driver is not None and self._process is not None:
                    self._driver.drive(self._process, len(ended))
                time.sleep(0.1)
            self._client.wait()
            self.made = {index: verdict.Made.read(self._client, name) for index, name in ids.items()}
            self.listed = self._client.states()
        finally:
            self.seconds = time.monotonic() - start
            self._stop()

    def problems(self) -> list[str]:
        problems = [f"{len(self.rest)} kills did not happen: use more videos"] if self.rest else []
        ids = {made.id for made in self.made.values()}
        if self.listed.keys() != ids:
            problems.append(f"the server lists {len(self.listed)} videos of {len(ids)}")
        if self._code != 128 + signal.SIGTERM:
            problems.append(f"the server ended with code {self._code} after SIGTERM")
        said = self.folder.with_suffix(".txt")
        if f'File "{REPOSITORY}' in said.read_text(encoding="utf-8"):  # a traceback that is not torchrun's
            problems.append(f"an unexpected error: see {said}")
        if self._chaos is not None:
            problems += [f"process {pid} outlived the server" for pid in orphans(self._chaos)]
        return problems

    def _keep_running(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.starts += 1
        if self.starts > MAX_STARTS:
            raise SystemExit(f"the server was started {MAX_STARTS} times; see {self.folder.with_suffix('.txt')}")
        self._process = start(self._command, self.folder.with_suffix(".txt"), self._chaos)

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._code = self._process.wait()


def _write_models(work: Path, arguments: argparse.Namespace) -> None:
    """Write two settings files of one checkpoint, whose weights differ in their type."""
    for name, dtype in (("a", "float32"), ("b", "bfloat16")):
        values = {
            "model": {"path": arguments.model, "device": "cpu", "dtype": dtype},
            "sampling": {"max_sequence_length": arguments.text_length} if arguments.text_length else {},
            "checkpoint": {"every_seconds": 0.01},
        }
        (work / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__ or "", work="what is in it is removed first")
    parser.add_argument("--jobs", type=int, default=20, help="number of videos")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--loaded", type=int, default=1, help="models that a replica keeps loaded")
    add_options(parser, nproc=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What chaos.py and serve_chaos.py share: options, prompts, the report, and how one fault follows another."""

from __future__ import annotations

import argparse
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2video.system.files import write_json

from . import orders
from .orders import Order

PROMPTS = [
    f"a large {colour} {shape} on a gray background"
    for colour in ("red", "green", "blue", "yellow", "white")
    for shape in ("circle", "square", "triangle", "star")
]


class Driver:
    """Places one order at a time.

    Args:
        planned: the orders, in the order in which they are placed.
        chaos: folder in which the processes find them.
    """

    def __init__(self, planned: Sequence[Order], chaos: Path) -> None:
        self._planned, self._chaos = planned, chaos
        self._placed_after = -1  # videos that had ended when the last order was placed

    @property
    def rest(self) -> list[Order]:
        """The orders that were not carried out yet."""
        return orders.rest_of(self._planned, self._chaos)

    def drive(self, process: subprocess.Popen[bytes], ended: int) -> None:
        """Place the next order when the last one was carried out and a video has ended since.

        Args:
            process: what the orders are for.
            ended: number of videos.
        """
        waiting = orders.waiting(self._chaos)
        if waiting is not None:
            if waiting.phase == "loading" and ended > self._placed_after:
                self._placed_after = ended
                process.send_signal(signal.SIGTERM)  # all have loaded: start again
        elif (rest := self.rest) and (ended > self._placed_after or rest[0].phase == "loading"):
            self._placed_after = ended
            orders.place(rest[0], self._chaos)


def make_parser(doc: str, *, work: str) -> argparse.ArgumentParser:
    """Return the parser of a tool: its docstring as help, and --work and --output; `work` says what --work is."""
    first, *rest = doc.split("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog="\n\n".join(rest), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help=f"folder of all files; {work}")
    parser.add_argument("-o", "--output", type=Path, help="report, a .json file")
    return parser


def add_options(parser: argparse.ArgumentParser, *, nproc: int) -> None:
    """Add the options on videos and processes; `nproc` is the default of --nproc."""
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--nproc", type=int, default=nproc, help="ranks of each replica")
    parser.add_argument("--seed", type=int, default=0, help="of the order, the ranks and the moments of the faults")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of each video")
    parser.add_argument("--model", default="shapes-wan")
    parser.add_argument("--text-length", type=int, help="sampling.max_sequence_length, for a model that needs one")
    parser.add_argument("--nice", type=int, default=19, help="added to the niceness of all processes")


def write_report(report: Mapping[str, Any], text: str, output: Path | None) -> int:
    """Print the report, write it as JSON and as text, and return the exit code of the tool."""
    print(text)
    if output is not None:
        write_json(output, report)
        output.with_suffix(".txt").write_text(text, encoding="utf-8")
    return 1 if report["found"] else 0

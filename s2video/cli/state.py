"""The commands about the state of a batch: status | pick."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..batch.picks import Verdict, decide, read_takes
from ..batch.picks import as_text as takes_as_text
from ..batch.run_file import load_batch
from ..batch.status import as_json, as_text, read_status
from ..errors import InputError
from ..system.terminal import show
from .arguments import add_command, path_argument

_WATCH_SECONDS = 2.0  # between two looks of `status --watch`


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    status = add_command(commands, "status", "Print what of a batch is done, what runs, and what failed")
    status.add_argument("folder", type=path_argument, metavar="RUN", help="the batch's folder, or its run file")
    status.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    status.add_argument(
        "--watch", action="store_true", help="print it again when it changes, until nothing is left to make"
    )
    status.add_argument(
        "--exit-code", action="store_true", help="1: something failed; 3: not finished; without it, 0 for any state"
    )
    status.set_defaults(run=_status)

    pick = add_command(
        commands,
        "pick",
        "Pick or reject takes of a batch, or print them; timelines and pages follow",
        examples="s2video pick runs/batch-shapes\n"
        's2video pick runs/batch-shapes triangle_v002_s0 --note "the better end"\n'
        "s2video pick runs/batch-shapes triangle_v001_s0 --reject",
    )
    pick.add_argument("folder", type=path_argument, metavar="RUN", help="the batch's folder, or its run file")
    pick.add_argument(
        "takes",
        nargs="*",
        metavar="TAKE",
        help="names of videos, or their beginnings; without TAKE, all takes are printed",
    )
    decision = pick.add_argument_group("what is decided about TAKE; without these, it is picked")
    either = decision.add_mutually_exclusive_group()
    either.add_argument("--reject", action="store_true", help="it is not used")
    either.add_argument("--clear", action="store_true", help="what was decided before is forgotten")
    decision.add_argument("--note", default="", metavar="TEXT", help="the reason, for others to read")
    pick.set_defaults(run=_pick)


def batch_folder(path: Path) -> Path:
    """Return the folder of a batch, which is named by itself or by its run file. Raises InputError."""
    return load_batch(path).folder if path.suffix in (".yaml", ".yml") else path


def _pick(arguments: argparse.Namespace) -> int:
    folder = batch_folder(arguments.folder)
    if not arguments.takes:
        if arguments.reject or arguments.clear or arguments.note:
            raise InputError("pick: expected names of takes, got none; s2video pick RUN prints them")
        show(takes_as_text(read_takes(folder)))
        return 0
    if arguments.clear and arguments.note:
        raise InputError("--note: expected a pick or --reject, got --clear, which keeps no note; leave one of them out")
    read_takes(folder)  # raises before a lock is made in a folder of another kind
    verdict: Verdict | None = None if arguments.clear else "rejected" if arguments.reject else "picked"
    takes = decide(folder, arguments.takes, verdict, note=arguments.note)
    show(takes_as_text(takes))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    folder = batch_folder(arguments.folder)
    shown = None
    while True:
        status = read_status(folder)
        counts = status.counts()
        if counts != shown:
            show(as_json(status) if arguments.json else as_text(status))
            shown = counts
        is_begun = bool(status.records)  # a start that still reads the weights has put no jobs
        is_finished = is_begun and not counts["waiting"] and not counts["running"]
        if is_finished or not arguments.watch:
            break
        time.sleep(_WATCH_SECONDS)
    if not (arguments.exit_code or arguments.watch):
        return 0
    return 1 if counts["failed"] else 0 if is_finished else 3

"""The commands for the edit: timeline."""

from __future__ import annotations

import argparse
from typing import Any

from ..editorial.read import check_suffix
from ..editorial.write import START, write_timeline
from ..errors import InputError
from ..media.checks import check_report
from ..media.signature import is_signed
from ..records.replacing import check_unsigned
from ..system.terminal import show_path
from .arguments import add_command, add_overwrite_argument, path_argument, say, whole_number
from .state import batch_folder


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    timeline = add_command(
        commands,
        "timeline",
        "Write the cut of a batch for an editor: of each shot the take that is used",
        examples="s2video timeline runs/batch-shapes -o cut.otio\n"
        "s2video timeline runs/batch-shapes -o cut.edl --handles 8 --start 10:00:00:00",
    )
    timeline.add_argument("folder", type=path_argument, metavar="RUN", help="the batch's folder, or its run file")
    timeline.add_argument(
        "-o", "--output", type=path_argument, required=True, metavar="CUT", help=".otio, .edl, or .xml of FCP 7"
    )
    timeline.add_argument("--title", help="without it, the folder's name")
    timeline.add_argument(
        "--start", metavar="TIMECODE", help=f"of the first frame; without it, the batch's timeline's, or {START}"
    )
    timeline.add_argument(
        "--handles", type=whole_number, metavar="N", help="frames at both ends of each video that the cut leaves out"
    )
    add_overwrite_argument(timeline)
    timeline.set_defaults(run=_timeline)


def _timeline(arguments: argparse.Namespace) -> int:
    folder, output = batch_folder(arguments.folder), arguments.output
    check_suffix(output)
    if arguments.handles is not None and arguments.handles < 0:
        raise InputError(f"--handles: expected 0 or more, got {arguments.handles}")
    check_report(output)
    check_unsigned(output, is_signed, overwrite=arguments.overwrite)
    title = arguments.title or folder.resolve().name
    for note in write_timeline(folder, output, title=title, start=arguments.start, handles=arguments.handles):
        say(note)
    show_path(output)
    return 0

"""The commands for the edit: timeline | copies."""

from __future__ import annotations

import argparse
from typing import Any

from ..config.fields import MAX_SIDE
from ..editorial.read import check_suffix
from ..editorial.shots import KEPT
from ..editorial.write import START, write_timeline
from ..errors import InputError
from ..media.checks import check_report
from ..media.naming import find_collisions
from ..media.signature import is_signed
from ..records.replacing import check_inputs_kept, check_unsigned
from ..system.terminal import show_path
from .arguments import add_command, add_overwrite_argument, path_argument, say, whole_number
from .state import batch_folder

_KINDS = {(False, False): "proxy", (True, False): "slate", (False, True): "burn-in", (True, True): "review"}


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
    files = timeline.add_argument_group("files")
    files.add_argument(
        "-o", "--output", type=path_argument, required=True, metavar="CUT", help=".otio, .edl, or .xml of FCP 7"
    )
    add_overwrite_argument(files)
    cut = timeline.add_argument_group("the cut")
    cut.add_argument("--title", help="without it, the folder's name")
    cut.add_argument(
        "--start", metavar="TIMECODE", help=f"of the first frame; without it, the batch's timeline's, or {START}"
    )
    cut.add_argument(
        "--handles", type=whole_number, metavar="N", help="frames at both ends of each video that the cut leaves out"
    )
    timeline.set_defaults(run=_timeline)

    copies = add_command(
        commands,
        "copies",
        "Make small review copies with a slate and burn-in, or plain proxies; the videos are only read",
        examples="s2video copies runs/batch-shapes -o runs/review\n"
        "s2video copies runs/batch-shapes -o runs/proxies --no-slate --no-burn-in --height 360",
    )
    copies.add_argument(
        "videos", type=path_argument, nargs="+", metavar="RUN_OR_VIDEO", help="folders of runs or batches, or videos"
    )
    copies.add_argument("--all", action="store_true", help="of a batch all takes, not only those that are used")
    files = copies.add_argument_group("files")
    files.add_argument("-o", "--output", type=path_argument, required=True, metavar="FOLDER", help="for the copies")
    add_overwrite_argument(files)
    picture = copies.add_argument_group("what they show")
    picture.add_argument("--height", type=whole_number, default=540, metavar="PX", help="of the picture")
    picture.add_argument("--no-slate", action="store_true", help="no frame with the facts in front")
    picture.add_argument("--no-burn-in", action="store_true", help="no text above and below the picture")
    copies.set_defaults(run=_copies)


def _timeline(arguments: argparse.Namespace) -> int:
    folder, output = batch_folder(arguments.folder), arguments.output
    check_suffix(output)
    if arguments.handles is not None and arguments.handles < 0:
        raise InputError(f"--handles: expected 0 or more, got {arguments.handles}")
    check_report(output)
    check_inputs_kept((output,), {"the batch's own timeline": folder / KEPT})
    check_unsigned(output, is_signed, overwrite=arguments.overwrite)
    title = arguments.title or folder.resolve().name
    for note in write_timeline(folder, output, title=title, start=arguments.start, handles=arguments.handles):
        say(note)
    show_path(output)
    return 0


def _copies(arguments: argparse.Namespace) -> int:
    from ..review.copies import LEAST_HEIGHT, write_copy
    from ..review.takes import find_videos

    slate, burn_in = not arguments.no_slate, not arguments.no_burn_in
    if not LEAST_HEIGHT <= arguments.height <= MAX_SIDE:
        raise InputError(f"--height: expected pixels from {LEAST_HEIGHT} to {MAX_SIDE}, got {arguments.height}")
    videos, notes = find_videos(arguments.videos, everything=arguments.all)
    for note in notes:
        say(note)
    kind = _KINDS[slate, burn_in]
    outputs = [arguments.output / f"{video.name if video.is_dir() else video.stem}_{kind}.mp4" for video, _ in videos]
    for first, later, same in find_collisions([(output,) for output in outputs]):
        raise InputError(
            f"{videos[later][0]} and {videos[first][0]}: both copies would be {same}; put them into two folders"
        )
    for output in outputs:
        check_report(output)
    check_inputs_kept(outputs, {f"the input {video}": video for video, _ in videos})
    for output in outputs:
        check_unsigned(output, is_signed, overwrite=arguments.overwrite)
    for (video, facts), output in zip(videos, outputs, strict=True):
        write_copy(video, output, facts, height=arguments.height, slate=slate, burn_in=burn_in)
        show_path(output)
    return 0

"""The commands of render farms: farm, and task, which a farm starts."""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path
from typing import Any

from ..batch.run_file import load_batch
from ..errors import InputError, S2VideoError, StoppedError
from ..fleet.farm import TEMPLATE, read_job, tell, write_bundle
from ..media.checks import check_output
from ..media.output_paths import OutputPaths
from ..models.checkpoint import open_checkpoint
from ..models.recipes import recipe_note
from ..records.replacing import check_replacing
from ..system import ranks, terminal
from ..system.launcher import LaunchPlan, launch
from ..system.terminal import show_path
from .arguments import add_command, add_set_argument, path_argument, say, whole_number
from .batch import require_usable


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    farm = add_command(
        commands,
        "farm",
        "Write a batch as a job bundle of Open Job Description, for a render farm",
        examples="s2video farm configs/batch-shapes.yaml -o runs/bundle\nopenjd run runs/bundle/template.json",
    )
    farm.add_argument("run_file", type=path_argument, metavar="RUNFILE", help="a YAML file, as of `s2video batch`")
    farm.add_argument_group("files").add_argument(
        "-o", "--output", type=path_argument, required=True, metavar="BUNDLE", help="a new folder, or that of a bundle"
    )
    add_set_argument(farm.add_argument_group("settings"))
    farm.add_argument_group("machines").add_argument(
        "--nproc", type=whole_number, default=1, metavar="N", help="ranks of each video, on one machine"
    )
    farm.set_defaults(run=_farm)

    task = commands.add_parser(  # without help in the list of commands: a farm starts it
        "task", description="Make one video of a bundle, as a machine of a render farm; see `s2video farm`."
    )
    task.add_argument("bundle", type=path_argument, metavar="BUNDLE", help="the folder that `s2video farm` wrote")
    task.add_argument("number", type=whole_number, metavar="NUMBER", help="of the task, from 1")
    files = task.add_argument_group("files")
    files.add_argument(
        "--output-folder", type=path_argument, required=True, metavar="FOLDER", help="of the batch's videos"
    )
    files.add_argument(
        "--working-folder", type=path_argument, required=True, metavar="FOLDER", help="of relative paths in settings"
    )
    task.add_argument_group("machines").add_argument(
        "--nproc", type=whole_number, default=1, metavar="N", help="ranks of the video, on this machine"
    )
    task.set_defaults(run=_task)


def _farm(arguments: argparse.Namespace) -> int:
    if arguments.nproc < 1:
        raise InputError(f"--nproc: expected a value >= 1, got {arguments.nproc}")
    run_file: Path = arguments.run_file
    bundle: Path = arguments.output
    batch = load_batch(run_file, arguments.set)
    if batch.recipe is not None:
        say(recipe_note(run_file, batch.recipe))
    open_model = cache(open_checkpoint)
    require_usable(batch, open_model, arguments.nproc, dry_run=True)
    for job in batch.jobs:
        check_replacing(OutputPaths.of(job.config))
    steps = write_bundle(bundle, run_file.stem, batch.jobs, batch.folder, open_model, nproc=arguments.nproc)
    kinds = "" if steps == 1 else f" of {steps} kinds of machines"
    terminal.say(f"{len(batch.jobs)} tasks{kinds}, with their videos in {batch.folder}")
    show_path(bundle / TEMPLATE)
    return 0


def _task(arguments: argparse.Namespace) -> int:
    """Run a task; a line for the farm says why it failed, in addition to the exit code."""
    try:
        return _run_task(arguments)
    except StoppedError:
        tell("status", "stopped; run again, it continues from its resume point")
        raise
    except S2VideoError as error:
        if not error.is_reported:
            tell("fail", error)
        raise


def _run_task(arguments: argparse.Namespace) -> int:
    bundle: Path = arguments.bundle.absolute()
    output: Path = arguments.output_folder.absolute()
    working: Path = arguments.working_folder
    job = read_job(bundle, arguments.number)
    try:
        os.chdir(working)
    except OSError as error:
        raise InputError(
            f"WorkingFolder: expected a folder, got {working} ({error.strerror}); give the one of "
            "this machine with -p WorkingFolder=..."
        ) from None
    config = job.config.patched({"output.path": str(output / job.name)}, job.name)
    if not ranks.launched_by_torchrun():
        files = OutputPaths.of(config)
        check_output(files)
        check_replacing(files)
        if arguments.nproc > 1:
            places = ["--output-folder", str(output), "--working-folder", str(Path.cwd())]
            return launch(LaunchPlan(arguments.nproc), ["task", str(bundle), str(arguments.number), *places])
    from ..fleet.task import run_task

    run_task(config)
    return 0

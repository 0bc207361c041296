"""The command `study`: settings compared on many prompts, by videos, measures and votes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..batch.fates import Again
from ..batch.shots import read_shots
from ..config.run import parse_override
from ..errors import InputError, S2VideoError, StoppedError
from ..media.checks import check_report
from ..media.signature import is_signed
from ..records.replacing import check_inputs_kept, check_unsigned
from ..study.design import (
    MAX_TAKES,
    OWN_FILES,
    RUN_FILE,
    SUFFIX,
    Design,
    make_design,
    read_design,
    read_settings,
    write_manifest,
    write_run_file,
)
from ..study.start import checked_batch, describe
from ..system import ranks, terminal
from ..system.files import kept_if_refused
from ..system.shutdown import time_limit
from ..system.terminal import show, show_json, show_path
from . import batch as batch_commands
from .arguments import (
    Parser,
    add_command,
    add_model_arguments,
    add_overwrite_argument,
    path_argument,
    read_model_arguments,
    whole_number,
)

PAGE = "study.html"
_YAML = (".yaml", ".yml")
_MAKING = ("dry_run", "minutes", "retry_failed", "keep_changed", "plain", "set")  # arguments for making videos
_UNFINISHED = 3  # exit code when the time is over, as that of `status --exit-code`


def add_commands(commands: Any) -> None:
    """Add the parser to those of the other commands."""
    study = add_command(
        commands,
        "study",
        "Compare settings on many prompts: make the videos, measure them, and vote without seeing the names",
        examples="s2video study --model shapes-wan --prompts prompts.txt --dry-run\n"
        "s2video study study.yaml --replicas 2 --nproc 4\n"
        "s2video study runs/study --votes votes-ann.json votes-bob.json\n"
        "s2video study --videos cfg=folder-a s2=folder-b -o study.html",
    )
    study.add_argument(
        "what", type=path_argument, nargs="?", metavar="STUDY", help="a study file (.yaml), or the folder of a study"
    )
    study.add_argument(
        "--videos",
        nargs="+",
        type=_named_path,
        metavar="NAME=FOLDER",
        help="videos made elsewhere, paired by file name",
    )
    study.add_argument(
        "--dry-run", action="store_true", help="check everything, and print how many videos and how long"
    )
    add_model_arguments(study)
    made = study.add_argument_group("what to make, without a study file")
    made.add_argument(
        "--prompts",
        type=path_argument,
        metavar="F",
        help="a prompt in each line (.txt; .jsonl and .csv as in a batch); for videos made elsewhere: .csv with the "
        "columns video and prompt",
    )
    made.add_argument("--seeds", type=whole_number, default=1, metavar="N", help="clips of each prompt and setting")
    made.add_argument(
        "--setting",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="a setting and what it changes; the first is the base; without it, cfg and s2",
    )
    made.add_argument("--folder", type=path_argument, help="without it, runs/ and the name of the file of prompts")
    machines = study.add_argument_group("machines and time")
    machines.add_argument("--replicas", type=whole_number, default=1, metavar="N", help="that draw from one queue")
    machines.add_argument("--nproc", type=whole_number, default=1, metavar="N", help="ranks of each replica")
    machines.add_argument("--minutes", type=float, metavar="M", help="stop after M minutes; the same command continues")
    machines.add_argument("--retry-failed", action="store_true", help="make again what failed")
    machines.add_argument(
        "--keep-changed", action="store_true", help="leave videos whose settings have changed, and compare them"
    )
    machines.add_argument("--plain", action="store_true", help="lines instead of a progress bar")
    report = study.add_argument_group("results")
    report.add_argument("--base", metavar="NAME", help="compare the other settings with this one")
    report.add_argument("--clip", type=path_argument, metavar="FOLDER", help="a CLIP model of transformers, for scores")
    report.add_argument(
        "--scores",
        nargs="+",
        type=_scores_file,
        default=[],
        metavar="FILE",
        help="scores of other programs: .csv with video, measure, value, or VBench's .json; SETTING=FILE if the paths "
        "in it do not tell the setting",
    )
    report.add_argument(
        "--votes", nargs="+", type=path_argument, default=[], metavar="FILE", help="votes that the page has saved"
    )
    report.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    report.add_argument(
        "-o", "--output", type=path_argument, metavar="X.html", help=f"without it, {PAGE} in the folder"
    )
    report.add_argument("--embed", type=float, default=100.0, metavar="MB", help="link videos that are more together")
    add_overwrite_argument(report)
    study.set_defaults(run=_study)


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, such as cfg=runs/cfg, got {text[:60]!r}")
    return name, path_argument(path)


def _scores_file(text: str) -> tuple[str | None, Path]:
    """Return the setting and the path of SETTING=FILE, or None and the path of FILE."""
    setting, equals, path = text.partition("=")
    whole = path_argument(text)
    return (setting, path_argument(path)) if equals and not whole.exists() else (None, whole)


def _study(arguments: argparse.Namespace) -> int:
    _check_arguments(arguments)
    design = _design(arguments) if _makes(arguments) else None
    folder = arguments.what if design is None else design.folder
    page = arguments.output or (Path(PAGE) if folder is None else folder / PAGE)
    _check_files(page, arguments, design)
    if design is not None and arguments.base not in (None, *design.settings):
        raise InputError(f"--base: expected one of {', '.join(design.settings)}, got {arguments.base!r}")
    failure: S2VideoError | None = None
    is_finished = True
    if design is not None:
        batch = checked_batch(design, arguments.nproc)
        if arguments.dry_run:
            wanted = Again(False, arguments.retry_failed, arguments.overwrite, arguments.keep_changed)
            show(describe(design, batch, wanted, replicas=arguments.replicas, world_size=arguments.nproc))
            return 0
        try:
            is_finished = _make(design, arguments)
        except InputError:
            raise
        except S2VideoError as error:
            if isinstance(error, StoppedError) or not _has_videos(design):
                raise
            is_finished, failure = True, error  # the videos that are there can be compared
        if not is_finished and not _has_videos(design):
            terminal.say("no video is complete yet")
            return _UNFINISHED
    _report(arguments, folder, page)
    if failure is not None:
        raise failure
    return 0 if is_finished else _UNFINISHED


def _has_videos(design: Design) -> bool:
    return any(
        (design.folder / name / f"{clip}{SUFFIX}").is_file() for name in design.settings for clip, _ in design.clips()
    )


def _makes(arguments: argparse.Namespace) -> bool:
    """Return whether videos are made, rather than only compared."""
    if arguments.what is not None:
        return arguments.what.suffix in _YAML
    return arguments.videos is None


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Raise InputError for arguments that do not go together."""
    if ranks.launched_by_torchrun():
        raise InputError("study: expected no torchrun, because it starts the ranks itself; use --nproc and --replicas")
    if arguments.videos is not None and arguments.what is not None:
        raise InputError("study: expected a study or --videos, got both; keep one")
    if arguments.videos is not None and len(dict(arguments.videos)) < max(2, len(arguments.videos)):
        raise InputError(
            "--videos: expected two or more NAME=FOLDER with different names; add the base, such as cfg=..."
        )
    own = [name for name in ("model", "config", "folder") if getattr(arguments, name)]
    own += ["setting"] * bool(arguments.setting) + ["seeds"] * (arguments.seeds != 1)
    is_file = arguments.what is not None and arguments.what.suffix in _YAML
    if is_file and (own or arguments.prompts):
        raise InputError(f"--{[*own, 'prompts'][0]}: {arguments.what} says this; change it there, or with --set")
    if not _makes(arguments):
        more = own + [name for name in _MAKING if getattr(arguments, name)]
        more += [name for name in ("replicas", "nproc") if getattr(arguments, name) != 1]
        if more:
            name = more[0].replace("_", "-")
            raise InputError(
                f"--{name}: expected a study file or --prompts, because only these make videos; leave it out"
            )
    elif not is_file and arguments.prompts is None:
        raise InputError(
            "study: expected a study file, --prompts FILE, the folder of a study, or --videos; see s2video study --help"
        )
    if not 1 <= arguments.seeds <= MAX_TAKES:
        raise InputError(f"--seeds: expected a number from 1 to {MAX_TAKES}, got {arguments.seeds}")
    if arguments.minutes is not None and not 0 < arguments.minutes <= 1e6:
        raise InputError(f"--minutes: expected minutes above 0, got {arguments.minutes:g}")
    if not 0 <= arguments.embed <= 1e6:
        raise InputError(f"--embed: expected megabytes from 0 to 1e6, got {arguments.embed:g}")


def _check_files(page: Path, arguments: argparse.Namespace, design: Design | None) -> None:
    """Raise InputError unless the page can be written and its inputs exist; it replaces only what s2video made."""
    check_report(page)
    given = {f"--votes {path}": path for path in arguments.votes}
    given |= {f"--scores {path}": path for _, path in arguments.scores}
    if arguments.clip is not None:
        given[f"--clip {arguments.clip / 'config.json'}"] = arguments.clip / "config.json"
    for name, path in given.items():  # found now, not after hours
        if not path.is_file():
            raise InputError(f"{name}: expected a file, found none; check the path")
    read = given | {"STUDY": arguments.what, "--prompts": arguments.prompts}
    written = [page, _measures_path(page), *(design.folder / name for name in OWN_FILES if design is not None)]
    check_inputs_kept(written, {name: path for name, path in read.items() if path is not None and path.is_file()})
    check_unsigned(page, is_signed, overwrite=arguments.overwrite)


def _measures_path(page: Path) -> Path:
    return page.with_name(f"{page.stem}.measures.json")


def _design(arguments: argparse.Namespace) -> Design:
    """Return what a study file, or the arguments in its place, say."""
    if arguments.what is not None:
        return read_design(arguments.what, arguments.set)
    config = read_model_arguments(arguments)
    values = config.model_dump(mode="json")
    for key in ("prompt", "image", "last_image"):
        del values[key]
    values["control"] = {"scale": values["control"]["scale"]}
    del values["output"]["path"]
    if values["checkpoint"]["every_seconds"] is None:
        del values["checkpoint"]["every_seconds"]  # a batch has a default of its own
    settings: dict[str, dict[str, Any]] = {}
    for name, *changes in arguments.setting:
        if name in settings:
            raise InputError(f"--setting {name}: expected each name once, got it twice; keep one")
        settings[name] = {}
        for change in changes:
            settings[name] |= parse_override(change)
    folder = arguments.folder or Path("runs") / arguments.prompts.stem
    return make_design(values, read_shots(arguments.prompts), arguments.seeds, _valid(settings), folder, "settings")


def _valid(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings if they could be those of a study file. Raises InputError."""
    try:
        return dict(read_settings(dict(settings)))
    except ValueError as error:
        raise InputError(f"--setting: {error}") from None


def _make(design: Design, arguments: argparse.Namespace) -> bool:
    """Make the videos that are missing, as a batch; return whether it ended before the time was over.

    Raises:
        S2VideoError: some videos failed.
        StoppedError: a signal stopped it.
    """
    command = ["batch", str(design.folder / RUN_FILE)]
    command += ["--replicas", str(arguments.replicas), "--nproc", str(arguments.nproc)]
    command += [
        f"--{name.replace('_', '-')}"
        for name in ("retry_failed", "overwrite", "keep_changed", "plain")
        if getattr(arguments, name)
    ]
    parser = Parser(prog="s2video")
    batch_commands.add_commands(parser.add_subparsers(dest="command", parser_class=Parser))
    parsed = parser.parse_args(command)
    try:
        # the files of a study say how its videos were made, so a start that is refused must not change them
        with (
            kept_if_refused([design.folder / name for name in OWN_FILES]),
            time_limit(arguments.minutes) as is_over,
            terminal.output_on_errors(),
        ):
            write_run_file(design, design.folder)
            write_manifest(design)
            parsed.run(parsed)
    except StoppedError:
        if not is_over.is_set():
            raise
        terminal.say(f"{arguments.minutes:g} minutes are over; run the same command to continue")
        return False
    return True


def _report(arguments: argparse.Namespace, folder: Path | None, page: Path) -> None:
    """Measure the videos, and write and print the results."""
    from ..review.page import read_failures
    from ..study.clips import pair_folders, read_study
    from ..study.gather import measured_study, merge
    from ..study.measures import MEASURES
    from ..study.page import write_study_page
    from ..study.results import compare
    from ..study.scores import read_scores
    from ..study.text import as_text
    from ..study.votes import read_votes

    prompts = None if _makes(arguments) else arguments.prompts
    if folder is None:
        study = pair_folders(dict(arguments.videos), base=arguments.base, prompts=prompts)
    else:
        study = read_study(folder, base=arguments.base, prompts=prompts)
    study, scores = measured_study(study, _measures_path(page))
    meanings = dict(MEASURES)
    if arguments.clip is not None:
        from ..study.clip_model import CLIP_MEASURES, ClipModel, clip_scores

        merge(scores, clip_scores(study, ClipModel(arguments.clip)), "--clip")
        meanings |= CLIP_MEASURES
    for setting, path in arguments.scores:
        merge(scores, read_scores(path, study, setting=setting), f"--scores {path}")
    votes = read_votes(arguments.votes, study) if arguments.votes else None
    results = compare(study, scores, meanings, votes)
    failures = [] if folder is None else read_failures(folder)
    write_study_page(study, scores, results, page, failures=failures, embed_megabytes=arguments.embed)
    if arguments.json:
        show_json(json.dumps({"page": str(page), **results.as_json()}, ensure_ascii=False))
    else:
        show(as_text(results))
        show_path(page)

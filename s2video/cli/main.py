"""The command line: `s2video COMMAND`, with an exit code for every end.

Everything that can be checked is checked before torch and diffusers are imported and before any process starts. Exit
codes: 0 done, 2 the input cannot be used (one line, no traceback), 1 a run that failed, 129 SIGHUP, 130 Ctrl-C, 143
SIGTERM.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module, metadata

from ..errors import InputError, S2VideoError, StoppedError
from ..system import ranks
from ..system.launcher import follow_launcher, report_exit_code, report_reason, tell_of_launcher
from ..system.roster import own_roster
from ..system.shutdown import Termination
from ..system.terminal import flush_output, lost_output, prepare_streams, say, say_error, show_json
from ..version import __version__
from .arguments import Parser

_FIRST_RANK_LIMIT = 10.0  # seconds that the first rank of a host may take to fail as another one of it did

# The modules of this folder that add commands, in the order of --help. Only the one that is called is imported.
_COMMANDS = {
    "generate": ("generate", "launch"),
    "decode": ("decode",),
    "batch": ("batch", "replica"),
    "state": ("status", "pick"),
    "editorial": ("timeline", "copies"),
    "review": ("inspect", "reproduce", "compare", "sheet", "page"),
    "study": ("study",),
    "serve": ("serve",),
    "farm": ("farm", "task"),
    "catalog": ("models", "config", "plan", "selftest"),
    "probe": ("probe",),
}

_EXAMPLES = """examples:
  s2video generate --model shapes-wan --prompt "a large red circle moving left on a gray background"
  s2video models
  s2video launch --nproc 8 t2v --model wan2.1-t2v-14b-720p --prompt "..." --output video.mp4
  s2video COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` is None for the process's own arguments."""
    atexit.register(_spare_last_collection)
    prepare_streams()
    follow_launcher()
    if not ranks.launched_by_torchrun():
        return _run(argv)
    own_roster()
    with Termination().handled():  # what a command installs handles the rest of its life
        try:
            code = _run(argv)
        except SystemExit as end:  # torchrun stops a rank when another one of its host has ended
            code = end.code if isinstance(end.code, int) else 1
            code = _say_lost(code) if code > 128 else code
        finally:
            own_roster().write("ended", goodbye=True)  # also before a traceback, which is a message
    if code > 128:
        tell_of_launcher()
    report_exit_code(code)
    return code


def _spare_last_collection() -> None:
    """Keep Python from looking for cycles among all objects of torch and its libraries, which takes about a second."""
    if "OpenImageIO" not in sys.modules:  # it would report whatever is not collected as leaked
        gc.freeze()


def _run(argv: Sequence[str] | None) -> int:
    arguments: argparse.Namespace | None = None
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        arguments = build_parser(*words[:1]).parse_args(words)
        code = _run_command(arguments) or _code_of_output(arguments.command)
    except InputError as error:
        if not error.is_reported and (error.is_reported is False or ranks.speaks_for_host() or _is_alone()):
            _say_failure(str(error))
            _show_error(arguments, str(error), 2)
        code = 2
    except StoppedError as error:
        if not error.is_reported:
            say(error)
        code = 128 + error.signal
    except S2VideoError as error:
        if not error.is_reported:
            _say_failure(f"rank {ranks.shown_rank()}: {error}" if ranks.launched_by_torchrun() else str(error))
            _show_error(arguments, str(error), 1)
        code = 1
    except KeyboardInterrupt:
        code = 130
    return code


def _run_command(arguments: argparse.Namespace) -> int:
    try:
        return int(arguments.run(arguments))
    except (ValueError, RuntimeError) as error:  # diffusers reads the variable when a command first imports its models
        if "AttentionBackendName" not in str(error):
            raise
        raise InputError(
            "DIFFUSERS_ATTN_BACKEND: expected the name of one of diffusers' attention backends, such as native, got "
            f"{os.environ.get('DIFFUSERS_ATTN_BACKEND')!r}; change it, or remove it from the environment"
        ) from None


def _code_of_output(command: str) -> int:
    """The exit code of a command that has done its work, by what became of its output."""
    flush_output()
    error = lost_output()
    if error is None or command == "replica" or ranks.launched_by_torchrun():
        return 0  # whoever started this process would take another code for a failure of the work
    return 128 + signal.SIGPIPE if isinstance(error, BrokenPipeError) else 1


def _show_error(arguments: argparse.Namespace | None, message: str, code: int) -> None:
    """Answer a command with --json in JSON, for a program that reads nothing else."""
    # `inspect` has answered already, with the sidecar, when it finds that a file was changed
    if getattr(arguments, "json", False) and (getattr(arguments, "command", ""), code) != ("inspect", 1):
        show_json(json.dumps({"error": {"message": message, "exit_code": code}}))


def _say_failure(reason: str, *, seconds_ago: float = 0.0) -> None:
    say_error(reason)
    report_reason(reason, seconds_ago=seconds_ago)


def _say_lost(code: int) -> int:
    """Say which rank of this host is lost, if one is; return the exit code. For ranks that have not joined yet."""
    others, lost = own_roster().others(), own_roster().lost()
    if not lost:
        return code
    if all(ranks.rank() < entry.rank for entry in others if entry not in lost):  # one of them speaks
        _say_failure(f"{own_roster().describe(lost)}; start again", seconds_ago=_FIRST_RANK_LIMIT)
    return 1


def _is_alone() -> bool:
    """Whether the first rank of this host does not fail as this one did, so that this one has to speak.

    That rank's end takes this one along: torchrun sends SIGTERM, which must not come before its line.
    """
    deadline = time.monotonic() + _FIRST_RANK_LIMIT
    while own_roster().has_another_first:
        first = own_roster().first()  # none before it has started
        if first is not None and (first.said_goodbye or not first.is_alive):
            return False
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


def build_parser(command: str = "") -> Parser:
    """Return the parser of a command and of those in its module, or of all commands if there is none of this name.

    Each sets `run`, which takes the parsed arguments.
    """
    parser = Parser(prog="s2video", description="Video from text and images, with S²-Guidance.", epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for module in [name for name, added in _COMMANDS.items() if command in added] or _COMMANDS:
        import_module(f".{module}", __package__).add_commands(commands)
    return parser


def _versions() -> str:
    found = []
    for name in ("torch", "diffusers"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return f"s2video {__version__} ({', '.join(found)})"

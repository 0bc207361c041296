"""The command line: `s2video COMMAND`, with an exit code for every end.

Everything that can be checked is checked before torch and diffusers are imported and before any process starts. Exit
codes: 0 done, 2 the input cannot be used (one line, no traceback), 1 a run that failed, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import metadata

from ..errors import InputError, S2VideoError, StoppedError
from ..system import ranks
from ..system.launcher import report_exit_code
from ..system.terminal import flush_output, lost_output, prepare_streams, say, say_error
from ..version import __version__
from . import batch, catalog, generate, review
from .arguments import Parser

_EXAMPLES = """examples:
  s2video generate --model shapes-wan --prompt "a large red circle moving left on a gray background"
  s2video models
  s2video launch --nproc 8 t2v --model wan2.1-t2v-14b-720p --prompt "..." --output video.mp4
  s2video COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` is None for the process's own arguments."""
    prepare_streams()
    try:
        arguments = build_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
        code = int(arguments.run(arguments)) or _code_of_output(arguments.command)
    except InputError as error:
        if not error.is_reported and (error.is_reported is False or ranks.speaks_for_host()):
            say_error(error)
        code = 2
    except StoppedError as error:
        if not error.is_reported:
            say(error)
        code = 128 + signal.SIGTERM
    except S2VideoError as error:
        if not error.is_reported:
            say_error(f"rank {ranks.shown_rank()}: {error}" if ranks.launched_by_torchrun() else str(error))
        code = 1
    except KeyboardInterrupt:
        code = 130
    report_exit_code(code)
    return code


def _code_of_output(command: str) -> int:
    """The exit code of a command that has done its work, by what became of its output."""
    flush_output()
    error = lost_output()
    if error is None or command == "replica" or ranks.launched_by_torchrun():
        return 0  # whoever started this process would take another code for a failure of the work
    return 128 + signal.SIGPIPE if isinstance(error, BrokenPipeError) else 1


def build_parser() -> Parser:
    """Return the parser of all commands; each sets `run`, which takes the parsed arguments."""
    parser = Parser(prog="s2video", description="Video from text and images, with S²-Guidance.", epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    generate.add_commands(commands)
    batch.add_commands(commands)
    review.add_commands(commands)
    catalog.add_commands(commands)
    return parser


def _versions() -> str:
    found = []
    for name in ("torch", "diffusers"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return f"s2video {__version__} ({', '.join(found)})"

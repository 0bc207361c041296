"""The command line: `s2video COMMAND`, with an exit code for every end.

Everything that can be checked is checked before torch and diffusers are imported and before any process starts. Exit
codes: 0 done, 2 the input cannot be used (one line, no traceback), 1 a run that failed, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata

from ..errors import InputError, S2VideoError, StoppedError
from ..system import ranks
from ..system.launcher import report_exit_code
from ..system.terminal import say, say_error
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
    try:
        arguments = build_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
        code = int(arguments.run(arguments))
        sys.stdout.flush()
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
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes there when Python ends
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 130
    report_exit_code(code)
    return code


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

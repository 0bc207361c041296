"""The command line: generate | decode | plan | selftest | launch, and the commands of `cli_batch` and `cli_review`.

Everything that can be checked is checked before torch and diffusers are imported and before any process starts. Exit
codes: 0 done, 2 the input cannot be used (one line, no traceback), 1 a run that failed, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from ..config.run import load_config
from ..errors import InputError, S2VideoError, StoppedError, out_of_memory
from ..media.checks import check_output
from ..media.formats import Codec, codec_for, suffix_of
from ..system import ranks
from ..system.launcher import report_exit_code
from ..system.shutdown import Termination
from ..version import __version__
from . import batch as cli_batch
from .arguments import (
    Parser,
    add_codec_arguments,
    add_generate_arguments,
    add_selftest_arguments,
    add_set_argument,
    whole_number,
)
from .generate import check_generate, generate, run_launch
from .review import add_review_commands

_COMMANDS = (
    *("generate", "batch", "status", "decode", "inspect", "reproduce", "compare", "sheet", "page"),
    *("plan", "selftest", "launch"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Arguments are the process's own where `argv` is None."""
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except InputError as error:
        if not error.told and (error.told is False or ranks.speaks_for_host()):
            _say(str(error))
        code = 2
    except StoppedError as error:
        if not error.told:
            print(f"s2video: {error}", file=sys.stderr, flush=True)
        code = 128 + signal.SIGTERM
    except S2VideoError as error:
        if not error.told:
            _say(f"rank {ranks.rank()}: {error}" if ranks.launched_by_torchrun() else str(error))
        code = 1
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes there when Python ends
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 130
    report_exit_code(code)
    return code


def _run(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if hasattr(arguments, "run"):
        return int(arguments.run(arguments))
    if arguments.command == "launch":
        return run_launch(arguments)
    if arguments.command == "decode":
        return _decode(arguments)
    if arguments.command == "plan":
        return _plan(arguments)
    if arguments.command == "selftest":
        return _selftest(arguments)
    if arguments.command in cli_batch.COMMANDS:
        return cli_batch.run(arguments)
    checked = check_generate(arguments, world_size=ranks.world_size())
    return generate(checked)


def _say(message: str) -> None:
    print(f"s2video: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="s2video", description="Video from text and images, with S²-Guidance.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(_COMMANDS))
    add_generate_arguments(
        commands.add_parser("generate", help="make videos from prompts, here or under torchrun", allow_abbrev=False)
    )
    cli_batch.add_commands(commands, whole_number, add_set_argument)

    decode = commands.add_parser("decode", help="make the video from saved latents", allow_abbrev=False)
    decode.add_argument("latents", type=Path, metavar="LATENTS", help="X.latents.safetensors, left by --keep-latents")
    decode.add_argument("--output", type=Path, metavar="X.mp4", help="or .mov, .png, .exr; default: beside the latents")
    add_codec_arguments(decode)
    decode.add_argument("--config", type=Path, help="config to decode with; default: the one saved with the latents")

    add_review_commands(commands)

    plan = commands.add_parser(
        "plan", help="what a run would cost on so many ranks, and the best mesh for it", allow_abbrev=False
    )
    plan.add_argument("--config", type=Path, required=True, metavar="C", help="YAML file, see configs/")
    plan.add_argument("--world", type=whole_number, required=True, metavar="N", help="ranks, one a card")
    plan.add_argument("--card", default="H100", metavar="NAME", help="H100 (default), ..., cpu, or a YAML file")
    plan.add_argument("--set-card", action="append", default=[], metavar="KEY=VALUE", help="as intra_gbs=200")
    add_set_argument(plan)
    plan.add_argument("--json", action="store_true", help="one JSON object instead of a table")

    add_selftest_arguments(
        commands.add_parser("selftest", help="check that this machine computes what it should", allow_abbrev=False)
    )

    launch_parser = commands.add_parser(
        "launch", help="start torchrun: launch --nproc N t2v|i2v [arguments of generate]", allow_abbrev=False
    )
    launch_parser.add_argument(
        "--nproc", type=whole_number, required=True, metavar="N", help="ranks on this host, one a GPU"
    )
    launch_parser.add_argument("--nnodes", type=whole_number, default=1, metavar="N", help="hosts; default 1")
    launch_parser.add_argument(
        "--node-rank", type=whole_number, default=0, metavar="R", help="this host's number, from 0"
    )
    launch_parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the hosts meet")
    launch_parser.add_argument(
        "task", choices=["t2v", "i2v", "reproduce", "selftest"], help="from text, from an image, ..."
    )
    launch_parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="as for s2video generate, reproduce or selftest"
    )
    return parser


def _versions() -> str:
    found = []
    for name in ("torch", "diffusers"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return f"s2video {__version__} ({', '.join(found)})"


def _decode(arguments: argparse.Namespace) -> int:
    latents: Path = arguments.latents
    if not latents.is_file():
        raise InputError(f"latents {latents}: no such file: expected the X.latents.safetensors of a --keep-latents run")
    if latents.suffix != ".safetensors":
        raise InputError(f"latents {latents}: expected a .safetensors file, got {latents.name!r}")
    codec: Codec | Literal["auto"] = arguments.codec or "auto"
    stem = latents.name.removesuffix(".safetensors").removesuffix(".latents")
    output = arguments.output or latents.with_name(f"{stem}{suffix_of(codec)}")
    codec_for(output, codec)
    check_output(output)
    config = None if arguments.config is None else load_config(arguments.config)
    if ranks.world_size() != 1:
        raise InputError("decode runs in one process: start it without torchrun")

    import torch

    from ..engine.decode_latents import decode_latents

    try:
        with Termination().handled():
            print(decode_latents(latents, output, config, codec=codec, ffmpeg=arguments.ffmpeg), flush=True)
    except torch.OutOfMemoryError as error:
        raise S2VideoError(out_of_memory(error)) from error
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from ..planning.cards import read_card
    from ..planning.plan import make_plan
    from ..planning.tables import as_json, as_table

    config = load_config(arguments.config, arguments.set)
    plan = make_plan(config, arguments.world, read_card(arguments.card, arguments.set_card))
    print(as_json(plan) if arguments.json else as_table(plan))
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    from ..config.sections import ParallelConfig
    from ..engine.selftest import format_row, run_selftest
    from ..parallel.mesh import init_mesh

    failed = 0
    with Termination().handled(), init_mesh(ParallelConfig(timeout_seconds=60), arguments.device) as mesh:
        for outcome in run_selftest(mesh):
            failed += not outcome.passed
            if mesh.is_main:
                print(format_row(outcome), flush=True)
    if failed:
        raise S2VideoError(f"selftest: {failed} check(s) failed; the table says what to do")
    return 0

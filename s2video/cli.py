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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NoReturn

from . import cli_batch
from .cli_review import add_reproduce_arguments, add_review_commands, check_reproduce
from .config import RunConfig, build_config, load_config
from .ending import Termination
from .errors import InputError, S2VideoError, StoppedError, out_of_memory
from .launcher import LaunchPlan, launch, report_exit_code
from .media.formats import FORMATS, Codec, codec_for, suffix_of
from .requests import (
    VideoRequest,
    check_images,
    check_output,
    check_request,
    check_spec,
    plan_videos,
    read_checkpoint,
    read_prompt_file,
)
from .version import __version__

_COMMANDS = (
    *("generate", "batch", "status", "decode", "inspect", "reproduce", "compare", "sheet", "page"),
    *("plan", "selftest", "launch"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True)
class _Checked:
    """A request that passed every check that needs no model."""

    config: RunConfig
    videos: tuple[VideoRequest, ...]
    plain: bool
    resume: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Arguments are the process's own where `argv` is None."""
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except InputError as error:
        if not error.told and (error.told is False or _speaks_for_host()):
            _say(str(error))
        code = 2
    except StoppedError as error:
        if not error.told:
            print(f"s2video: {error}", file=sys.stderr, flush=True)
        code = 128 + signal.SIGTERM
    except S2VideoError as error:
        rank = os.environ.get("RANK")
        if not error.told:
            _say(str(error) if rank is None else f"rank {rank}: {error}")
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
        return _launch(arguments)
    if arguments.command == "decode":
        return _decode(arguments)
    if arguments.command == "plan":
        return _plan(arguments)
    if arguments.command == "selftest":
        return _selftest(arguments)
    if arguments.command in cli_batch.COMMANDS:
        return cli_batch.run(arguments)
    checked = _check_generate(arguments, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    return _generate(checked)


def _say(message: str) -> None:
    print(f"s2video: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _speaks_for_host() -> bool:
    """Every rank finds the same mistake in the input: one of each host says so."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="s2video", description="Video from text and images, with S²-Guidance.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(_COMMANDS))
    _add_generate_arguments(
        commands.add_parser("generate", help="make videos from prompts, here or under torchrun", allow_abbrev=False)
    )
    cli_batch.add_commands(commands, _whole, _add_set_argument)

    decode = commands.add_parser("decode", help="make the video from saved latents", allow_abbrev=False)
    decode.add_argument("latents", type=Path, metavar="LATENTS", help="X.latents.safetensors, left by --keep-latents")
    decode.add_argument("--output", type=Path, metavar="X.mp4", help="or .mov, .png, .exr; default: beside the latents")
    _add_codec_arguments(decode)
    decode.add_argument("--config", type=Path, help="config to decode with; default: the one saved with the latents")

    add_review_commands(commands)

    plan = commands.add_parser(
        "plan", help="what a run would cost on so many ranks, and the best mesh for it", allow_abbrev=False
    )
    plan.add_argument("--config", type=Path, required=True, metavar="C", help="YAML file, see configs/")
    plan.add_argument("--world", type=_whole, required=True, metavar="N", help="ranks, one a card")
    plan.add_argument("--card", default="H100", metavar="NAME", help="H100 (default), ..., cpu, or a YAML file")
    plan.add_argument("--set-card", action="append", default=[], metavar="KEY=VALUE", help="as intra_gbs=200")
    _add_set_argument(plan)
    plan.add_argument("--json", action="store_true", help="one JSON object instead of a table")

    _add_selftest_arguments(
        commands.add_parser("selftest", help="check that this machine computes what it should", allow_abbrev=False)
    )

    launch_parser = commands.add_parser(
        "launch", help="start torchrun: launch --nproc N t2v|i2v [arguments of generate]", allow_abbrev=False
    )
    launch_parser.add_argument("--nproc", type=_whole, required=True, metavar="N", help="ranks on this host, one a GPU")
    launch_parser.add_argument("--nnodes", type=_whole, default=1, metavar="N", help="hosts; default 1")
    launch_parser.add_argument("--node-rank", type=_whole, default=0, metavar="R", help="this host's number, from 0")
    launch_parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the hosts meet")
    launch_parser.add_argument(
        "task", choices=["t2v", "i2v", "reproduce", "selftest"], help="from text, from an image, ..."
    )
    launch_parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="as for s2video generate, reproduce or selftest"
    )
    return parser


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="C", help="YAML file, see configs/")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="P", help="what the video shows; default: the config's prompt")
    prompts.add_argument("--prompt-file", type=Path, metavar="F", help="UTF-8 text, a prompt a line")
    parser.add_argument("--negative-prompt", metavar="N", help="what the unconditional pass is told")
    parser.add_argument("--image", metavar="I", help="image that the video starts from; for models that take one")
    parser.add_argument("--last-image", metavar="I", help="image that it ends with; for models that take two")
    parser.add_argument("--seed", type=_whole, metavar="S", help="seed of the noise and the masks")
    parser.add_argument("--num-videos", type=_whole, default=1, metavar="K", help="videos a prompt: seeds S to S+K-1")
    parser.add_argument(
        "--output",
        metavar="X.mp4",
        help="or .mov, .png, .exr; more than one video: X-000.mp4, X-001.mp4, ..., or as in {prompt}_s{seed}.{ext}",
    )
    _add_codec_arguments(parser)
    _add_set_argument(parser)
    parser.add_argument("--keep-latents", action="store_true", help="leave X.latents.safetensors beside the video")
    parser.add_argument(
        "--resume", action="store_true", help="skip videos that are whole; go on from X.checkpoint.safetensors"
    )
    parser.add_argument("--plain", action="store_true", help="lines instead of a progress bar")


def _add_codec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--codec", choices=list(FORMATS), help="default: by the output's suffix")
    parser.add_argument("--ffmpeg", metavar="PATH", help="the ffmpeg to use; default: the one that comes along")


def _add_set_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, as guidance.s2_scale=0.3"
    )


def _add_selftest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda, if there")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, came {text[:60]!r}") from None


def _versions() -> str:
    found = []
    for name in ("torch", "diffusers"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return f"s2video {__version__} ({', '.join(found)})"


def _check_generate(arguments: argparse.Namespace, *, world_size: int) -> _Checked:
    config = _with_arguments(load_config(arguments.config, arguments.set), arguments)
    if arguments.prompt_file is not None:
        prompts = read_prompt_file(arguments.prompt_file)
    else:
        prompts = [] if config.prompt is None else [config.prompt]
    videos = plan_videos(
        prompts,
        seed=config.sampling.seed,
        num_videos=arguments.num_videos,
        output=Path(config.output.path),
        codec=config.output.codec,
    )
    spec = config.output.spec(videos[0].output)
    if _is_main_rank():  # the only one that writes, and perhaps the only host with that folder
        for video in videos:
            check_output(video.output)

    from .models.images import read_images
    from .models.loading import check_checkpoint, find_checkpoint

    folder = find_checkpoint(config.model.path, config.model.revision)
    check_checkpoint(folder)
    checkpoint = read_checkpoint(folder)
    check_request(config, checkpoint, world_size=world_size)
    check_images(checkpoint, image=config.image is not None, last_image=config.last_image is not None)
    read_images(*config.image_paths)
    if _is_main_rank():
        check_spec(spec, config.sampling.width, config.sampling.height)
    return _Checked(config, videos, arguments.plain, arguments.resume)


def _with_arguments(config: RunConfig, arguments: argparse.Namespace) -> RunConfig:
    values = config.model_dump(mode="json")
    if arguments.prompt is not None:
        values["prompt"] = arguments.prompt
    elif arguments.prompt_file is not None:
        values["prompt"] = None  # each video has its own
    if arguments.negative_prompt is not None:
        values["negative_prompt"] = arguments.negative_prompt
    if arguments.image is not None:
        values["image"] = arguments.image
    if arguments.last_image is not None:
        values["last_image"] = arguments.last_image
    if arguments.seed is not None:
        values["sampling"]["seed"] = arguments.seed
    if arguments.output is not None:
        values["output"]["path"] = arguments.output
    values["output"] |= _given_output(arguments)
    if arguments.keep_latents:
        values["output"]["keep_latents"] = True
    return build_config(values, "command line")


def _given_output(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {"codec": arguments.codec, "ffmpeg": arguments.ffmpeg}
    return {name: value for name, value in given.items() if value is not None}


def _generate(checked: _Checked) -> int:
    import torch

    from .job import Job
    from .parallel.mesh import init_mesh
    from .pipeline import Engine
    from .planning.plan import resolve_parallel
    from .production import make_video

    config = resolve_parallel(checked.config, int(os.environ.get("WORLD_SIZE", "1")))
    try:
        with Termination().handled() as termination, init_mesh(config.parallel, config.model.device) as mesh:
            engine = Engine(config, mesh, progress="plain" if checked.plain else "auto", termination=termination)
            for prompt, seed, output in checked.videos:
                job = Job(
                    prompt,
                    config.negative_prompt,
                    seed,
                    output,
                    config.output.keep_latents,
                    checked.resume,
                    *config.image_paths,
                )
                written = make_video(engine, job)
                if written is not None:
                    print(written, flush=True)
    except torch.OutOfMemoryError as error:
        raise S2VideoError(out_of_memory(error)) from error
    return 0


def _decode(arguments: argparse.Namespace) -> int:
    latents: Path = arguments.latents
    if not latents.is_file():
        raise InputError(f"latents {latents}: no such file: expected the X.latents.safetensors of a --keep-latents run")
    if latents.suffix != ".safetensors":
        raise InputError(f"latents {latents}: expected a .safetensors file, came {latents.name!r}")
    codec: Codec | Literal["auto"] = arguments.codec or "auto"
    stem = latents.name.removesuffix(".safetensors").removesuffix(".latents")
    output = arguments.output or latents.with_name(f"{stem}{suffix_of(codec)}")
    codec_for(output, codec)
    check_output(output)
    config = None if arguments.config is None else load_config(arguments.config)
    if int(os.environ.get("WORLD_SIZE", "1")) != 1:
        raise InputError("decode runs in one process: start it without torchrun")

    import torch

    from .records.saved_latents import decode_latents

    try:
        with Termination().handled():
            print(decode_latents(latents, output, config, **_given_output(arguments)), flush=True)
    except torch.OutOfMemoryError as error:
        raise S2VideoError(out_of_memory(error)) from error
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from .planning.cards import read_card
    from .planning.plan import as_json, as_table, make_plan

    config = load_config(arguments.config, arguments.set)
    plan = make_plan(config, arguments.world, read_card(arguments.card, arguments.set_card))
    print(as_json(plan) if arguments.json else as_table(plan))
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    from .parallel.mesh import init_mesh
    from .selftest import format_row, run_selftest
    from .settings import ParallelConfig

    failed = 0
    with Termination().handled(), init_mesh(ParallelConfig(timeout_seconds=60), arguments.device) as mesh:
        for outcome in run_selftest(mesh):
            failed += not outcome.passed
            if mesh.is_main:
                print(format_row(outcome), flush=True)
    if failed:
        raise S2VideoError(f"selftest: {failed} check(s) failed; the table says what to do")
    return 0


def _launch(arguments: argparse.Namespace) -> int:
    plan = LaunchPlan(arguments.nproc, arguments.nnodes, arguments.node_rank, arguments.rdzv_endpoint)
    task = _Parser(prog=f"s2video launch --nproc N {arguments.task}", allow_abbrev=False)
    if arguments.task == "selftest":
        _add_selftest_arguments(task)
        task.parse_args(arguments.arguments)
        plan.check()
        return launch(plan, ["selftest", *arguments.arguments])
    if arguments.task == "reproduce":
        add_reproduce_arguments(task)
        reproduce_arguments = task.parse_args(arguments.arguments)
        plan.check()
        check_reproduce(reproduce_arguments, world_size=plan.world_size)
        return launch(plan, ["reproduce", *arguments.arguments])
    _add_generate_arguments(task)
    generate_arguments = task.parse_args(arguments.arguments)
    plan.check()
    _check_generate(generate_arguments, world_size=plan.world_size)
    return launch(plan, ["generate", *arguments.arguments])

"""The commands that make videos: generate, and launch, which starts a command under torchrun."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config.run import RunConfig
from ..engine.job import plan_jobs, read_prompt_file
from ..engine.space import check_space
from ..errors import memory_reported
from ..media.checks import check_output, check_spec
from ..media.output_paths import OutputPaths
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.limits import check_inputs, check_request
from ..records.replacing import Replaced, check_inputs_kept, check_replacing, inputs_of, sentences
from ..system import ranks
from ..system.claims import check_unclaimed
from ..system.launcher import LaunchPlan, launch
from ..system.progress import Style
from ..system.shutdown import Termination
from ..system.terminal import show_path
from .arguments import (
    Parser,
    add_command,
    add_generate_arguments,
    add_selftest_arguments,
    optional_path,
    read_model_arguments,
    say,
    whole_number,
)
from .probe import add_probe_arguments, check_probe
from .review import add_reproduce_arguments, check_reproduce

_OTHER_TASKS = ("reproduce", "probe", "selftest")  # of launch: commands under their own names


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    generate = add_command(
        commands,
        "generate",
        "Make videos from prompts and images, in this process or as a rank of torchrun",
        examples='s2video generate --prompt "a large red circle moving left on a gray background"\n'
        "s2video generate --model wan2.1-t2v-1.3b-480p --prompt-file prompts.txt --output '{prompt}_s{seed}.{ext}'\n"
        "s2video generate --config my.yaml --set guidance.s2_scale=0.5 --output runs/x.mov --codec prores",
    )
    add_generate_arguments(generate)
    generate.set_defaults(run=_generate)
    _add_launch(commands)


def _add_launch(commands: Any) -> None:
    starter = add_command(
        commands,
        "launch",
        "Start torchrun, with one rank for each GPU",
        examples='s2video launch --nproc 8 t2v --model wan2.1-t2v-14b-720p --prompt "..." --output video.mp4\n'
        "s2video launch --nproc 2 selftest",
    )
    starter.add_argument("--nproc", type=whole_number, required=True, metavar="N", help="ranks on this host")
    starter.add_argument("--nnodes", type=whole_number, default=1, metavar="N", help="hosts")
    starter.add_argument("--node-rank", type=whole_number, default=0, metavar="R", help="this host's number, from 0")
    starter.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the hosts meet")
    starter.add_argument("task", choices=["t2v", "i2v", *_OTHER_TASKS], help="t2v and i2v: generate")
    starter.add_argument("arguments", nargs=argparse.REMAINDER, help="of generate, reproduce, probe or selftest")
    starter.set_defaults(run=_launch)


def _generate(arguments: argparse.Namespace) -> int:
    return generate(check_generate(arguments, world_size=ranks.world_size()))


@dataclass(frozen=True)
class Checked:
    """Jobs of one model that passed every check that needs no weights."""

    jobs: tuple[RunConfig, ...]
    checkpoint: Checkpoint
    plain: bool
    resume: bool
    notes: tuple[str, ...] = ()


def check_generate(arguments: argparse.Namespace, *, world_size: int) -> Checked:
    """Turn arguments into jobs, and check all that can be checked without torch. Raises InputError."""
    config = read_model_arguments(arguments, _changes(arguments))
    if arguments.prompt_file is not None:
        prompts = read_prompt_file(arguments.prompt_file)
    else:
        prompts = [] if config.prompt is None else [config.prompt]
    jobs = plan_jobs(config, prompts, arguments.num_videos)
    specs = jobs[0].output.specs()
    replaced = _check_outputs(jobs, arguments) if ranks.is_main_rank() else []

    from ..models.control import read_pictures

    read_pictures(config)  # before the model, which can be a download of many GB
    checkpoint = open_checkpoint(*config.model.source)
    check_request(config, checkpoint.info, world_size=world_size)
    check_inputs(checkpoint.info, config)
    if ranks.is_main_rank():
        for spec in specs:
            check_spec(spec, config.sampling.width, config.sampling.height)
        check_space((job, checkpoint.info) for job in jobs)
    notes = () if arguments.resume else tuple(sentences(replaced))  # --resume keeps a video that is made already
    return Checked(jobs, checkpoint, arguments.plain, arguments.resume, notes)


def _check_outputs(jobs: Sequence[RunConfig], arguments: argparse.Namespace) -> list[Replaced]:
    """Check all files that will be written. Only for the main rank: other hosts need not have that folder."""
    read = {"--config": optional_path(arguments.config), "--prompt-file": arguments.prompt_file}
    replaced = []
    for job in jobs:
        files = OutputPaths.of(job)
        check_output(files)
        check_unclaimed(files.locks)
        check_inputs_kept(files.all, read | inputs_of(job))
        replaced.append(check_replacing(files, overwrite=arguments.overwrite))
    return [each for each in replaced if each is not None]


def _changes(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings that arguments of their own name, by dotted key."""
    named = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "image": arguments.image,
        "last_image": arguments.last_image,
        "control.video": arguments.control_video,
        "control.mask": arguments.control_mask,
        "control.references": arguments.reference or None,
        "sampling.seed": arguments.seed,
        "output.path": arguments.output,
        "output.keep_latents": arguments.keep_latents or None,
        "output.codec": arguments.codec,
        "output.also": arguments.also or None,
        "output.ffmpeg": arguments.ffmpeg,
        "output.credentials": arguments.credentials,
        "output.credentials_key": arguments.credentials_key,
    }
    changes = {key: value for key, value in named.items() if value is not None}
    return changes | ({"prompt": None} if arguments.prompt_file is not None else {})


def generate(checked: Checked) -> int:
    """Make the videos, on this rank; returns the exit code."""
    from ..engine.engine import Engine
    from ..engine.make_video import make_video
    from ..engine.statement import jobs_statement
    from ..parallel.agreement import require_agreement
    from ..parallel.mesh import init_mesh
    from ..planning.fits import advice_for
    from ..planning.plan import resolve_parallel

    for note in checked.notes:
        say(note)
    jobs = [resolve_parallel(job, checked.checkpoint, ranks.world_size()) for job in checked.jobs]
    progress: Style = "plain" if checked.plain else "auto"
    parallel, device = jobs[0].parallel, jobs[0].model.device
    with (
        Termination().handled() as termination,
        init_mesh(parallel, device) as mesh,
        memory_reported(lambda: advice_for(jobs[0], mesh.world.size, mesh.device)),
    ):
        require_agreement(jobs_statement(jobs, resume=checked.resume), mesh.world)
        engine = Engine(jobs[0], mesh, checkpoint=checked.checkpoint, progress=progress, termination=termination)
        for job in jobs:
            written = make_video(engine, job, resume=checked.resume)
            for file in OutputPaths.of(job).videos if written is not None else ():
                show_path(file.video)
    return 0


def _launch(arguments: argparse.Namespace) -> int:
    """Check the arguments of the task here, so that bad input starts no process, and start it."""
    plan = LaunchPlan(arguments.nproc, arguments.nnodes, arguments.node_rank, arguments.rdzv_endpoint)
    task = Parser(prog=f"s2video launch --nproc N {arguments.task}")
    command = arguments.task if arguments.task in _OTHER_TASKS else "generate"
    if command == "selftest":
        add_selftest_arguments(task)
        task.parse_args(arguments.arguments)
        plan.check()
    elif command == "reproduce":
        add_reproduce_arguments(task)
        parsed = task.parse_args(arguments.arguments)
        plan.check()
        check_reproduce(parsed, world_size=plan.world_size)
    elif command == "probe":
        add_probe_arguments(task)
        parsed = task.parse_args(arguments.arguments)
        plan.check()
        check_probe(parsed, world_size=plan.world_size)
    else:
        add_generate_arguments(task)
        parsed = task.parse_args(arguments.arguments)
        plan.check()
        check_generate(parsed, world_size=plan.world_size)
    return launch(plan, [command, *arguments.arguments])

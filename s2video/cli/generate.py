"""`s2video generate`, and `s2video launch`, which starts it under torchrun."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..config.run import RunConfig, load_config
from ..engine.job import plan_jobs, read_prompt_file
from ..errors import S2VideoError, out_of_memory
from ..media.checks import check_output, check_spec
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.limits import check_images, check_request
from ..system import ranks
from ..system.launcher import LaunchPlan, launch
from ..system.progress import Style
from ..system.shutdown import Termination
from .arguments import Parser, add_generate_arguments, add_selftest_arguments
from .review import add_reproduce_arguments, check_reproduce


@dataclass(frozen=True)
class Checked:
    """Jobs of one model that passed every check that needs no weights."""

    jobs: tuple[RunConfig, ...]
    checkpoint: Checkpoint
    plain: bool
    resume: bool


def check_generate(arguments: argparse.Namespace, *, world_size: int) -> Checked:
    """Turn arguments into jobs, and check all that can be checked without torch. Raises InputError."""
    config = load_config(arguments.config, arguments.set).patched(_changes(arguments), "command line")
    if arguments.prompt_file is not None:
        prompts = read_prompt_file(arguments.prompt_file)
    else:
        prompts = [] if config.prompt is None else [config.prompt]
    jobs = plan_jobs(config, prompts, arguments.num_videos)
    spec = jobs[0].output.spec(Path(jobs[0].output.path))
    if ranks.is_main_rank():  # the only one that writes; other hosts need not have that folder
        for job in jobs:
            check_output(Path(job.output.path))

    from ..models.images import read_images

    checkpoint = open_checkpoint(config.model.path, config.model.revision)
    check_request(config, checkpoint.info, world_size=world_size)
    check_images(checkpoint.info, image=config.image is not None, last_image=config.last_image is not None)
    read_images(*config.image_paths)
    if ranks.is_main_rank():
        check_spec(spec, config.sampling.width, config.sampling.height)
    return Checked(jobs, checkpoint, arguments.plain, arguments.resume)


def _changes(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings that arguments of their own name, by dotted key."""
    named = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "image": arguments.image,
        "last_image": arguments.last_image,
        "sampling.seed": arguments.seed,
        "output.path": arguments.output,
        "output.keep_latents": arguments.keep_latents or None,
        "output.codec": arguments.codec,
        "output.ffmpeg": arguments.ffmpeg,
    }
    changes = {key: value for key, value in named.items() if value is not None}
    return changes | ({"prompt": None} if arguments.prompt_file is not None else {})


def generate(checked: Checked) -> int:
    """Make the videos, on this rank; returns the exit code."""
    import torch

    from ..engine.engine import Engine
    from ..engine.make_video import make_video
    from ..parallel.mesh import init_mesh
    from ..planning.plan import resolve_parallel

    jobs = [resolve_parallel(job, checked.checkpoint, ranks.world_size()) for job in checked.jobs]
    progress: Style = "plain" if checked.plain else "auto"
    try:
        with Termination().handled() as termination, init_mesh(jobs[0].parallel, jobs[0].model.device) as mesh:
            engine = Engine(jobs[0], mesh, checkpoint=checked.checkpoint, progress=progress, termination=termination)
            for job in jobs:
                written = make_video(engine, job, resume=checked.resume)
                if written is not None:
                    print(written, flush=True)
    except torch.OutOfMemoryError as error:
        raise S2VideoError(out_of_memory(error)) from error
    return 0


def run_launch(arguments: argparse.Namespace) -> int:
    plan = LaunchPlan(arguments.nproc, arguments.nnodes, arguments.node_rank, arguments.rdzv_endpoint)
    task = Parser(prog=f"s2video launch --nproc N {arguments.task}", allow_abbrev=False)
    if arguments.task == "selftest":
        add_selftest_arguments(task)
        task.parse_args(arguments.arguments)
        plan.check()
        return launch(plan, ["selftest", *arguments.arguments])
    if arguments.task == "reproduce":
        add_reproduce_arguments(task)
        reproduce_arguments = task.parse_args(arguments.arguments)
        plan.check()
        check_reproduce(reproduce_arguments, world_size=plan.world_size)
        return launch(plan, ["reproduce", *arguments.arguments])
    add_generate_arguments(task)
    generate_arguments = task.parse_args(arguments.arguments)
    plan.check()
    check_generate(generate_arguments, world_size=plan.world_size)
    return launch(plan, ["generate", *arguments.arguments])

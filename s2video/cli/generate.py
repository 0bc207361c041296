"""`s2video generate`, and `s2video launch`, which starts it under torchrun."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..config.run import RunConfig, build_config, load_config
from ..engine.job import VideoRequest, plan_videos, read_prompt_file
from ..errors import S2VideoError, out_of_memory
from ..media.checks import check_output, check_spec
from ..models.checkpoint import read_checkpoint
from ..models.limits import check_images, check_request
from ..system import ranks
from ..system.launcher import LaunchPlan, launch
from ..system.shutdown import Termination
from .arguments import Parser, add_generate_arguments, add_selftest_arguments, given_output
from .review import add_reproduce_arguments, check_reproduce


@dataclass(frozen=True)
class Checked:
    """A request that passed every check that needs no model."""

    config: RunConfig
    videos: tuple[VideoRequest, ...]
    plain: bool
    resume: bool


def check_generate(arguments: argparse.Namespace, *, world_size: int) -> Checked:
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
    if ranks.is_main_rank():  # the only one that writes, and perhaps the only host with that folder
        for video in videos:
            check_output(video.output)

    from ..models.checkpoint import check_checkpoint, find_checkpoint
    from ..models.images import read_images

    folder = find_checkpoint(config.model.path, config.model.revision)
    check_checkpoint(folder)
    checkpoint = read_checkpoint(folder)
    check_request(config, checkpoint, world_size=world_size)
    check_images(checkpoint, image=config.image is not None, last_image=config.last_image is not None)
    read_images(*config.image_paths)
    if ranks.is_main_rank():
        check_spec(spec, config.sampling.width, config.sampling.height)
    return Checked(config, videos, arguments.plain, arguments.resume)


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
    values["output"] |= given_output(arguments)
    if arguments.keep_latents:
        values["output"]["keep_latents"] = True
    return build_config(values, "command line")


def generate(checked: Checked) -> int:
    import torch

    from ..engine.engine import Engine
    from ..engine.job import Job
    from ..engine.make_video import make_video
    from ..parallel.mesh import init_mesh
    from ..planning.plan import resolve_parallel

    config = resolve_parallel(checked.config, ranks.world_size())
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

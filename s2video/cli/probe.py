"""The command `probe`: one short run that says whether and how S² can act on a checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from ..config.run import RunConfig
from ..engine.job import read_prompt_file
from ..errors import InputError, S2VideoError, out_of_memory
from ..media.checks import check_report
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.limits import check_inputs, check_request
from ..system import ranks
from ..system.files import write_json
from ..system.shutdown import Termination
from ..system.terminal import show
from .arguments import Parser, add_command, add_model_arguments, path_argument, read_model_arguments, whole_number

PROMPTS = (
    "a red fox runs through deep snow, wide shot",
    "a woman pours tea into a glass cup by a window, close-up",
    "waves break on a rocky coast at sunset, aerial view",
)
LEAST_STEPS, LEAST_DRAWS = 3, 2


def add_commands(commands: Any) -> None:
    """Add the parser to those of the other commands."""
    probe = add_command(
        commands,
        "probe",
        "Measure how a checkpoint's predictions change without some blocks, and suggest settings of S²",
        examples="s2video probe --model shapes-wan --json runs/probe.json --picture runs/probe.png\n"
        "s2video launch --nproc 8 probe --model wan2.1-t2v-14b-720p --set sampling.num_inference_steps=20",
    )
    add_probe_arguments(probe)
    probe.set_defaults(run=_probe)


def _probe(arguments: argparse.Namespace) -> int:
    return run_probe(*check_probe(arguments, world_size=ranks.world_size()), arguments)


def add_probe_arguments(parser: Parser) -> None:
    """Add what `probe` and `launch probe` take."""
    add_model_arguments(parser)
    what = parser.add_argument_group("what to measure")
    prompts = what.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="P", help="without it, the config's prompt, or three of this command")
    prompts.add_argument("--prompt-file", type=path_argument, metavar="F", help="UTF-8 text, a prompt in each line")
    what.add_argument("--points", type=whole_number, default=3, metavar="N", help="points of the run, 3 steps each")
    what.add_argument("--draws", type=whole_number, default=4, metavar="N", help="masks of each number of blocks")
    files = parser.add_argument_group("files")
    files.add_argument("--json", type=path_argument, metavar="X.json", help="every figure, for programs")
    files.add_argument("--picture", type=path_argument, metavar="X.png", help="the effect of each block, as bars")


def check_probe(arguments: argparse.Namespace, *, world_size: int) -> tuple[RunConfig, Checkpoint, list[str]]:
    """Check all that can be checked without torch. Raises InputError."""
    config = read_model_arguments(arguments)
    if arguments.prompt_file is not None:
        prompts = list(read_prompt_file(arguments.prompt_file))
    else:
        own = arguments.prompt or config.prompt
        prompts = list(PROMPTS) if own is None else [own]
    for name, least in (("points", 1), ("draws", LEAST_DRAWS)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name}: expected a number >= {least}, got {getattr(arguments, name)}")
    if (steps := config.sampling.num_inference_steps) < LEAST_STEPS:
        raise InputError(
            f"sampling.num_inference_steps: expected at least {LEAST_STEPS}, the steps of a point, got {steps}; "
            "set more"
        )
    if ranks.is_main_rank():
        for path in (arguments.json, arguments.picture):
            if path is not None:
                check_report(path)
    checkpoint = open_checkpoint(*config.model.source)
    check_request(config.patched({"guidance.reuse": "exact"}), checkpoint.info, world_size=world_size)
    check_inputs(checkpoint.info, config)
    return config, checkpoint, prompts


def run_probe(config: RunConfig, checkpoint: Checkpoint, prompts: list[str], arguments: argparse.Namespace) -> int:
    """Measure, on this rank; the main rank prints and writes. Returns the exit code."""
    import torch

    from ..engine.engine import Engine
    from ..models.control import read_pictures
    from ..parallel.agreement import require_agreement
    from ..parallel.mesh import init_mesh
    from ..planning.plan import resolve_parallel
    from ..probe.advice import advise
    from ..probe.measure import probe
    from ..probe.report import as_json, as_table, draw
    from ..records.sidecar import versions

    config = resolve_parallel(config, checkpoint, ranks.world_size())
    try:
        with Termination().handled() as termination, init_mesh(config.parallel, config.model.device) as mesh:
            asked = {"prompts": prompts, "points": arguments.points, "draws": arguments.draws}
            require_agreement(asked, mesh.world)
            engine = Engine(config, mesh, checkpoint=checkpoint, progress="none", termination=termination)
            images = read_pictures(config)
            figures = probe(engine, prompts, points=arguments.points, draws=arguments.draws, images=images)
            if figures is None:
                return 0
            suggestions = advise(figures)
            show(as_table(figures, suggestions))
            if arguments.json is not None:
                facts = {"model": config.model.path, "prompts": prompts, "weights": engine.digests.weights()}
                record = {**facts, "config": config.model_dump(mode="json"), "versions": versions()}
                write_json(arguments.json, as_json(figures, suggestions, record))
            if arguments.picture is not None:
                draw(figures, suggestions, arguments.picture)
    except torch.OutOfMemoryError as error:
        raise S2VideoError(out_of_memory(error)) from error
    return 0

"""The command of the server: serve."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..batch.supervisor import ReplicaPlan, visible_gpus
from ..config.named import EMBEDDED_CONFIG
from ..config.run import RunConfig
from ..errors import InputError, StoppedError
from ..models.checkpoint import open_checkpoint
from ..models.recipes import load_config_with_note, load_model_config
from ..planning.plan import this_card
from ..system.files import user_path
from .arguments import add_command, add_set_argument, path_argument, say, whole_number

KEY_VARIABLE = "S2VIDEO_API_KEY"
_CHECKPOINT_EVERY = 60.0  # seconds between two resume points of a running job
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_commands(commands: Any) -> None:
    """Add the parser to those of the other commands."""
    serve = add_command(
        commands,
        "serve",
        "Serve videos over HTTP, as the openai client asks for them",
        examples="s2video serve\ns2video serve --model wan=wan2.1-t2v-14b-720p --replicas 2 --nproc 4",
    )
    models = serve.add_argument_group("models")
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]M",
        help="a name of `s2video models`, a YAML file, a folder or a Hub id, and the name by which clients choose it; "
        "repeat it for more models; without it, the embedded model",
    )
    models.add_argument("--lora", action="append", default=[], metavar="NAME=FILE", help="that clients can choose")
    add_set_argument(models)
    where = serve.add_argument_group("where")
    where.add_argument("--folder", type=path_argument, default=Path("runs/serve"), help="of jobs and videos")
    where.add_argument("--host", default="127.0.0.1", help=f"address; beyond this machine it needs {KEY_VARIABLE}")
    where.add_argument("--port", type=whole_number, default=8000, metavar="N", help="port of that address")
    where.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name of this server")
    machines = serve.add_argument_group("machines")
    machines.add_argument("--replicas", type=whole_number, default=1, metavar="N", help="that draw from one queue")
    machines.add_argument("--nproc", type=whole_number, default=1, metavar="N", help="ranks of each replica")
    machines.add_argument(
        "--loaded",
        type=whole_number,
        default=1,
        metavar="N",
        help="models that a replica keeps loaded; the one that was not used for longest makes room for another",
    )
    limits = serve.add_argument_group("limits")
    limits.add_argument("--max-pixels", type=whole_number, default=1280 * 720, metavar="N", help="of a frame")
    limits.add_argument("--max-frames", type=whole_number, default=257, metavar="N", help="of a video")
    limits.add_argument("--max-steps", type=whole_number, default=200, metavar="N", help="of denoising")
    limits.add_argument("--max-queue", type=whole_number, default=1000, metavar="N", help="videos that may wait")
    serve.add_argument("--plain", action="store_true", help="print the progress of steps")
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    try:
        from ..server.app import Server
        from ..server.guards import LOOPBACK, Rules
        from ..server.queue import JobQueue
        from ..server.room import crowding
        from ..server.serve import Address, serve
        from ..server.video_request import Limits, Models
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 's2video[serve]'") from None
    key = os.environ.get(KEY_VARIABLE) or None
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise InputError(
            f"{KEY_VARIABLE}: expected printable ASCII without spaces around it, got other characters, which no header "
            "can hold; choose another key"
        )
    if arguments.host not in _LOOPBACK and key is None:
        raise InputError(
            f"--host {arguments.host}: other machines could make videos here; set {KEY_VARIABLE} to a secret that "
            "clients send, or listen on 127.0.0.1"
        )
    if not 0 < arguments.port < 65536:
        raise InputError(f"--port: expected 1 to 65535, got {arguments.port}")
    models = Models(_configs(arguments), _loras(arguments.lora), open_checkpoint)
    device = next(iter(models.configs.values())).model.device
    plan = ReplicaPlan(arguments.replicas, arguments.nproc, visible_gpus(device) if arguments.replicas > 1 else ())
    plan.check()
    if arguments.loaded < 1:
        raise InputError(f"--loaded: expected a number >= 1, got {arguments.loaded}")
    for config in models.configs.values():
        models.open(*config.model.source)
    if arguments.loaded > 1:
        warning = crowding(models, arguments.loaded, world_size=arguments.nproc, card=this_card(device))
        if warning is not None:
            say(warning)
    limits = Limits(
        pixels=arguments.max_pixels,
        frames=arguments.max_frames,
        steps=arguments.max_steps,
        waiting=arguments.max_queue,
    )
    others = [name.lower() for name in arguments.allow_host]  # as names in requests are compared
    hosts = (*LOOPBACK, *others) if others or arguments.host in _LOOPBACK else ()
    queue = JobQueue(arguments.folder.resolve())
    server = Server(queue, models, limits, world_size=arguments.nproc, replicas=arguments.replicas)
    address = Address(arguments.host, arguments.port)
    rules = Rules(hosts, key, limits.body)
    number = serve(server, rules, address, plan, loaded=arguments.loaded, plain=arguments.plain)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StoppedError("the server stopped; the next start continues the videos that it was making")


def _configs(arguments: argparse.Namespace) -> Mapping[str, RunConfig]:
    """Return the settings of each --model by its name."""
    from ..config.run import parse_override

    overrides: dict[str, Any] = {}
    for item in arguments.set:
        overrides |= parse_override(item)
    found: dict[str, RunConfig] = {}
    for text in arguments.model or [EMBEDDED_CONFIG]:
        name, separator, model = text.partition("=")
        model = model if separator else text
        name = name if separator else Path(text).stem if text.endswith((".yaml", ".yml")) else text.rpartition("/")[2]
        if not (name and model):
            raise InputError(f"--model: expected MODEL or NAME=MODEL, got {text[:200]!r}")
        if name in found:
            raise InputError(f"--model: expected different names, got {name} twice; write NAME={model}")
        if model.endswith((".yaml", ".yml")):
            loaded = load_config_with_note(model, arguments.set)
        else:
            loaded = load_model_config(model, overrides)
        if loaded.note:
            say(loaded.note)
        found[name] = _with_checkpoints(loaded.config)
    return found


def _with_checkpoints(config: RunConfig) -> RunConfig:
    """Return settings with an interval at which running jobs are saved, if they have none."""
    if config.checkpoint.every_seconds is not None:
        return config
    return config.patched({"checkpoint.every_seconds": _CHECKPOINT_EVERY})


def _loras(items: list[str]) -> dict[str, Path]:
    found = {}
    for item in items:
        name, separator, text = item.partition("=")
        path = user_path(text, "--lora")
        if not (separator and name and path.exists()):
            raise InputError(f"--lora: expected NAME=FILE with a file that exists, got {item[:200]!r}")
        found[name] = path.resolve()
    return found

"""The commands that answer questions: models | config | plan | selftest."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from ..config.named import config_names, named_config
from ..config.reference import Setting, settings_of
from ..config.run import RunConfig
from ..config.text import nearest_key
from ..errors import InputError, S2VideoError
from ..system.shutdown import Termination
from ..system.terminal import show
from .arguments import add_command, add_model_arguments, add_selftest_arguments, read_model_arguments, whole_number


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    models = add_command(commands, "models", "List the models that can be named, with size, memory and inputs")
    models.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    models.set_defaults(run=_models)

    config = add_command(
        commands,
        "config",
        "Print settings with kind, default and meaning",
        examples="s2video config\ns2video config guidance\ns2video config guidance.s2_scale",
    )
    config.add_argument("key", nargs="?", metavar="KEY", help="a section or a setting; without it, all of them")
    config.set_defaults(run=_config)

    plan = add_command(
        commands,
        "plan",
        "Predict what a run costs on some number of GPUs, and which mesh is best",
        examples="s2video plan --model wan2.1-t2v-14b-720p --world 8\n"
        "s2video plan --model hunyuanvideo-720p --world 2 --card H200 --json",
    )
    add_model_arguments(plan)
    plan.add_argument("--world", type=whole_number, required=True, metavar="N", help="ranks, one for each GPU")
    plan.add_argument("--card", default="H100", metavar="NAME", help="a known GPU, cpu, or a YAML file of figures")
    plan.add_argument("--set-card", action="append", default=[], metavar="KEY=VALUE", help="such as intra_gbs=200")
    plan.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    plan.set_defaults(run=_plan)

    selftest = add_command(commands, "selftest", "Check that this machine computes what it should")
    add_selftest_arguments(selftest)
    selftest.set_defaults(run=_selftest)


def _models(arguments: argparse.Namespace) -> int:
    from ..planning.catalog import as_json, as_table, list_models

    entries = list_models()
    show(as_json(entries) if arguments.json else as_table(entries))
    return 0


def _config(arguments: argparse.Namespace) -> int:
    key, known = arguments.key, list(settings_of(RunConfig))
    found = [setting for setting in known if key in (None, setting.key) or setting.key.startswith(f"{key}.")]
    if not found:
        raise InputError(f"config {key!r}: unknown key{nearest_key(key, RunConfig)}")
    show("\n".join(map(_described, found)))
    general = "    These are general defaults. `s2video config KEY` shows what the configs of models set instead."
    show(_in_configs(found[0].key) if len(found) == 1 else general)
    return 0


def _in_configs(key: str) -> str:
    """What the configs of models set, as lines: each value, and in which of them."""
    names: dict[str, list[str]] = {}
    for name in config_names():
        value: Any = named_config(name).model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        names.setdefault(json.dumps(value, ensure_ascii=False), []).append(name)
    lines = (f"    {value} in the config of {', '.join(found)}" for value, found in names.items())
    return "\n".join(lines) if len(names) > 1 else f"    {min(names)} in all configs of models"


def _described(setting: Setting) -> str:
    first = f"{setting.key}: {setting.kind}; default {setting.default}"
    return "\n".join([first, *textwrap.wrap(setting.meaning, 96, initial_indent="    ", subsequent_indent="    ")])


def _plan(arguments: argparse.Namespace) -> int:
    from ..planning.cards import read_card
    from ..planning.fits import ways_to_run
    from ..planning.plan import find_json, make_plan
    from ..planning.tables import as_json, as_table

    config = read_model_arguments(arguments)
    card = read_card(arguments.card, arguments.set_card)
    plan = make_plan(config, arguments.world, card)
    ways = ways_to_run(config, arguments.world, *find_json(config), reserved_gb=card.reserved_gb)
    show(as_json(plan, ways) if arguments.json else as_table(plan, ways))
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
                show(format_row(outcome))
    if failed:
        raise S2VideoError(f"selftest: {failed} check(s) failed; the table says what to do")
    return 0

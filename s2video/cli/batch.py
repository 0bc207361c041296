"""The commands that make batches: batch, and replica, which the supervisor starts."""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ..batch.checks import check_folder, find_cut_prompts, find_problems
from ..batch.fates import Again, outlook
from ..batch.plan import describe, predict_seconds
from ..batch.register import judge, refuse, register
from ..batch.run_file import RESERVED, Batch, BatchJob, ListedShots, load_batch
from ..batch.store import Store
from ..batch.supervisor import ReplicaPlan, supervise, visible_gpus
from ..batch.takes import MAX_VERSION
from ..config.run import RunConfig
from ..editorial.shots import TimelineShots, keep_timeline, shots_in
from ..errors import InputError, S2VideoError, StoppedError
from ..fleet.run import run_on_ray
from ..models.checkpoint import OpenModel, open_checkpoint
from ..models.recipes import recipe_note
from ..records.replacing import Replaced, sentences
from ..system import ranks, terminal
from ..system.locks import held_lock
from ..system.processes import IDLENESS, has_gpu
from ..system.terminal import show
from .arguments import add_command, add_set_argument, path_argument, say, whole_number
from .ray_arguments import add_ray_arguments, ray_options


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    batch = add_command(
        commands,
        "batch",
        "Make a list of shots, on this machine, on a Ray cluster, or as ranks of torchrun",
        examples="s2video batch configs/batch-shapes.yaml --dry-run\n"
        "s2video batch configs/batch-shapes.yaml --replicas 2 --nproc 4\n"
        "s2video batch --timeline cut.otio --handles 8 --set model.path=shapes-wan\n"
        "s2video batch configs/batch-shapes.yaml --ray --replicas 2\n"
        "s2video batch configs/batch-shapes.yaml --version 2 --only triangle --set guidance.cfg_scale=4",
    )
    batch.add_argument(
        "run_file", type=path_argument, nargs="?", metavar="RUNFILE", help="a YAML file of settings and shots"
    )
    batch.add_argument("--dry-run", action="store_true", help="check everything, and print what would be made")
    batch.add_argument("--plain", action="store_true", help="lines instead of a progress bar")
    settings = batch.add_argument_group("settings")
    settings.add_argument("--config", type=path_argument, metavar="RUNFILE", help="another way to name the run file")
    add_set_argument(settings)
    video = batch.add_argument_group("what to make")
    video.add_argument(
        "--only", type=_names, default=(), metavar="SHOTS", help="names or patterns, such as sh010,sh02*; others stay"
    )
    video.add_argument(
        "--version", type=_version, metavar="N", help="make version N of the shots, and leave the other versions"
    )
    video.add_argument(
        "--timeline",
        type=path_argument,
        metavar="CUT",
        help=".otio, .edl or .xml whose clips with prompts are the shots, in place of those of the run file",
    )
    video.add_argument(
        "--handles", type=whole_number, default=None, metavar="N", help="more frames before and after each clip of CUT"
    )
    machines = batch.add_argument_group("machines")
    machines.add_argument(
        "--replicas",
        type=whole_number,
        default=1,
        metavar="N",
        help="copies of the models, which take shots from one list",
    )
    machines.add_argument("--nproc", type=whole_number, default=1, metavar="N", help="ranks of each replica")
    machines.add_argument("--shard", type=_shard, metavar="I/N", help="make only part I, from 1, of N equal parts")
    add_ray_arguments(batch)
    again = batch.add_argument_group("what to make again")
    again.add_argument("--force", action="store_true", help="everything")
    again.add_argument("--retry-failed", action="store_true", help="what failed")
    changed = again.add_mutually_exclusive_group()
    changed.add_argument(
        "--overwrite",
        action="store_true",
        help="videos whose settings have changed; also replace files that s2video did not make, or that were changed",
    )
    changed.add_argument(
        "--keep-changed", action="store_true", help="nothing whose settings have changed: those videos stay as they are"
    )
    batch.set_defaults(run=_batch)

    replica = commands.add_parser("replica")  # without help: started by the supervisor
    replica.add_argument("folder", type=path_argument)
    replica.add_argument("--shard", type=_shard)
    replica.add_argument("--overlap", choices=["auto", "always", "never"], required=True)
    replica.add_argument("--progress", choices=["auto", "plain", "none"], required=True)
    replica.add_argument("--owner", required=True)
    replica.add_argument("--serve", action="store_true")  # wait for jobs of a server
    replica.add_argument("--loaded", type=whole_number, default=1)
    replica.set_defaults(run=_replica)


def _shard(text: str) -> tuple[int, int] | None:
    """Return I and N; None for 1/1, which is the whole batch and has the same state."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 1/4, got {text[:60]!r}")
    return None if int(match[2]) == 1 else (int(match[1]), int(match[2]))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names of shots, separated by commas, got {text[:60]!r}")
    return names


def _version(text: str) -> int:
    number = whole_number(text)
    if not 1 <= number <= MAX_VERSION:
        raise argparse.ArgumentTypeError(f"expected a version from 1 to {MAX_VERSION}, got {number}")
    return number


def _batch(arguments: argparse.Namespace) -> int:
    path: Path | None = arguments.run_file or arguments.config or arguments.timeline
    shard: tuple[int, int] | None = arguments.shard
    if path is None or (arguments.run_file and arguments.config):
        raise InputError("batch: expected one run file, such as configs/batch-shapes.yaml")
    if arguments.handles is not None and arguments.timeline is None:
        raise InputError("--handles: expected --timeline too; other shots have their own sampling.num_frames")
    is_rank = _is_rank()
    if is_rank and (arguments.replicas, arguments.nproc) != (1, 1):
        raise InputError(
            "--replicas and --nproc: expected neither under torchrun, which starts the ranks of one replica"
        )
    ray = ray_options(arguments, is_rank=is_rank)
    world_size = ranks.world_size() if is_rank else arguments.nproc
    open_model = cache(open_checkpoint)
    edit = _timeline_shots(arguments, path, open_model)
    listed = None if edit is None else ListedShots(str(arguments.timeline), edit.shots)
    batch = load_batch(path, arguments.set, version=arguments.version, only=arguments.only, listed=listed)
    if batch.recipe is not None and not is_rank:
        say(recipe_note(path, batch.recipe))
    require_usable(batch, open_model, world_size, dry_run=arguments.dry_run)
    jobs = list(batch.jobs)
    if shard is not None:
        index, count = shard
        jobs = [job for job in jobs if job.take is not None and job.take.number % count == index - 1]
    gpus: Sequence[str] = ()
    if arguments.replicas > 1 and jobs and ray is None:  # one replica takes all of them
        gpus = visible_gpus(jobs[0].config.model.device)
    plan = ReplicaPlan(arguments.replicas, arguments.nproc, gpus)
    if ray is None:
        plan.check()
    is_main = ranks.is_main_rank()
    store = Store(batch.folder, shard)
    wanted = Again(arguments.force, arguments.retry_failed, arguments.overwrite, arguments.keep_changed)
    if arguments.dry_run:
        if is_main:
            check_folder(batch.folder, shard, path)
            _dry_run(jobs, store, open_model, wanted, plan, world_size)
        return 0
    if not jobs:
        terminal.say("no videos for this shard")
        return 0
    if not is_main:
        _run_as_rank(store, jobs, batch, arguments.plain)
        return 0
    with _owned(store, path, shard):
        replaced, kept = register(jobs, store, open_model, world_size=world_size, wanted=wanted, batch=batch)
        _say_fates(replaced, kept, wanted)
        if edit is not None:
            keep_timeline(batch.folder, edit.timeline)
        records = store.records()
        waiting = sum(record.state == "waiting" for record in records)
        terminal.say(f"{waiting} of {len(records)} videos to make in {batch.folder}")
        if is_rank:
            _run_as_rank(store, jobs, batch, arguments.plain)
        elif ray is None:
            _check_end(store, _supervise_here(store, plan, jobs[0].config, batch, arguments))
        elif waiting:  # otherwise no cluster is needed
            _check_end(store, run_on_ray(store, jobs[0].config, ray, overlap=batch.overlap))
        return _verdict(store)


def _dry_run(
    jobs: Sequence[BatchJob], store: Store, open_model: OpenModel, wanted: Again, plan: ReplicaPlan, world_size: int
) -> None:
    """Print what a start would do."""
    judged = judge(jobs, store, open_model, wanted, all_keys=False)
    refuse([each.fate for each in judged])
    _say_fates(
        [each.fate.replaced for each in judged],
        [each.job.name for each in judged if each.fate.is_kept],
        wanted,
    )
    for sentence in find_cut_prompts(jobs, open_model):
        say(f"warning: {sentence}")
    seconds = predict_seconds(jobs, open_model, world_size=world_size)
    states = {record.name: record.state for record in store.records()} if store.path.exists() else {}
    outlooks = [outlook(each.fate, states.get(each.job.name)) for each in judged]
    show(describe(jobs, seconds, outlooks, replicas=plan.count, world_size=world_size))


def _timeline_shots(arguments: argparse.Namespace, path: Path, open_model: OpenModel) -> TimelineShots | None:
    """Return the shots of --timeline, and say what is not one; None without it."""
    if arguments.timeline is None:
        return None
    found = shots_in(
        arguments.timeline, path, tuple(arguments.set), handles=arguments.handles or 0, open_model=open_model
    )
    for note in found.notes:
        say(note)
    return found


def _supervise_here(
    store: Store, plan: ReplicaPlan, settings: RunConfig, batch: Batch, arguments: argparse.Namespace
) -> int | None:
    """Run replicas on this machine; returns the signal that stopped them."""
    style = "none" if plan.count > 1 else "plain" if arguments.plain else "auto"
    command = ["replica", str(batch.folder), "--overlap", batch.overlap, "--progress", style]
    if arguments.shard is not None:
        command += ["--shard", "/".join(map(str, arguments.shard))]
    idleness = IDLENESS  # a thread that waits for a GPU need not use the CPU
    if settings.model.device != "cpu" and has_gpu():
        idleness = max(IDLENESS, settings.parallel.timeout_seconds)
    return supervise(store, plan, command, idleness=idleness)


@contextmanager
def _owned(store: Store, run_file: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Make the state if it is missing, and hold its lock in the block. Raises InputError if that is impossible."""
    with ExitStack() as until_end:
        store.create_folder()
        # two different batches that start at once must not both find an empty folder
        with held_lock(store.folder / f"{RESERVED}start.lock", patience=10) as is_alone:
            if not is_alone:
                raise InputError(f"{store.folder}: another batch has been starting here for over 10 s; stop it")
            check_folder(store.folder, shard, run_file)
            store.create()
            if not until_end.enter_context(held_lock(store.lock_path)):
                raise InputError(f"{store.folder}: another process is making this batch: wait for it, or stop it")
            store.set_run_file(run_file)
        yield


def _say_fates(replaced: Iterable[Replaced | None], kept: Sequence[str], wanted: Again) -> None:
    """Say what --overwrite replaces. Without it, a video of this name is kept if it is the one that is wanted."""
    for sentence in sentences([each for each in replaced if each is not None]) if wanted.overwrite else ():
        terminal.say(sentence)
    if kept:
        more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
        terminal.say(f"made from other settings, and left as they are: {', '.join(kept[:3])}{more}")


def _is_rank() -> bool:
    """Whether this process is one rank of the only replica, which torchrun started."""
    return ranks.launched_by_torchrun()


def require_usable(batch: Batch, open_model: OpenModel, world_size: int, *, dry_run: bool) -> None:
    """Raise InputError after printing what is wrong with each shot."""
    found = find_problems(batch.jobs, open_model, world_size=world_size, images=dry_run)
    problems = list(dict.fromkeys([*batch.problems, *found]))
    if not problems:
        return
    if ranks.speaks_for_host():
        for problem in problems:
            terminal.say(" ".join(problem.split()))
    raise InputError(f"{len(problems)} problems with the shots of this batch, see above; nothing was started")


def _run_as_rank(store: Store, jobs: Sequence[BatchJob], batch: Batch, plain: bool) -> None:
    """Run the only replica, whose ranks torchrun started."""
    from ..batch.replica import run_replica

    owner = f"replica-1-{os.urandom(4).hex()}"
    run_replica(store, jobs[0].config, owner, overlap=batch.overlap, progress="plain" if plain else "auto")


def _replica(arguments: argparse.Namespace) -> int:
    from ..batch.replica import run_replica

    store = Store(arguments.folder, arguments.shard)
    if arguments.serve:
        from ..server.queue import JobQueue

        store = JobQueue(arguments.folder)
    records = store.records()
    if not records:  # the only one was deleted meanwhile
        return 0
    config = RunConfig.model_validate_json(records[0].config)
    run_replica(
        store,
        config,
        arguments.owner,
        overlap=arguments.overlap,
        progress=arguments.progress,
        stays=arguments.serve,
        loaded=arguments.loaded,
    )
    return 0


def _check_end(store: Store, number: int | None) -> None:
    """Raise KeyboardInterrupt or StoppedError if a signal stopped the replicas."""
    if number is None:
        return
    done = sum(record.state == "done" for record in store.records())
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    stopped = StoppedError(
        f"stopped with {done} of {len(store.records())} videos done; run the same command to continue"
    )
    stopped.signal = number
    raise stopped


def _verdict(store: Store) -> int:
    records = store.records()
    failed = sum(record.state == "failed" for record in records)
    if failed:
        raise S2VideoError(
            f"{failed} of {len(records)} videos failed: s2video status {store.folder} prints why, and --retry-failed "
            "makes them again"
        )
    return 0

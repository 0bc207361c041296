"""The commands of batches: batch | status | pick, and replica, which the supervisor starts."""

from __future__ import annotations

import argparse
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ..batch.checks import check_folder, find_cut_prompts, find_problems
from ..batch.fates import Again, outlook
from ..batch.picks import Verdict, decide, read_takes
from ..batch.picks import as_text as takes_as_text
from ..batch.plan import describe, predict_seconds
from ..batch.register import judge, refuse, register
from ..batch.run_file import RESERVED, Batch, BatchJob, load_batch
from ..batch.status import as_json, as_text, read_status
from ..batch.store import Store
from ..batch.supervisor import ReplicaPlan, supervise, visible_gpus
from ..batch.takes import MAX_VERSION
from ..config.run import RunConfig
from ..errors import InputError, S2VideoError, StoppedError
from ..models.checkpoint import OpenModel, open_checkpoint
from ..models.recipes import recipe_note
from ..records.replacing import Replaced, sentences
from ..system import ranks, terminal
from ..system.locks import held_lock
from ..system.processes import IDLENESS, has_gpu
from ..system.terminal import show
from .arguments import add_command, add_set_argument, path_argument, say, whole_number

_WATCH_SECONDS = 2.0  # between two looks of `status --watch`


def add_commands(commands: Any) -> None:
    """Add the parsers to those of the other commands."""
    batch = add_command(
        commands,
        "batch",
        "Make a list of shots, on this machine or as ranks of torchrun",
        examples="s2video batch configs/batch-shapes.yaml --dry-run\n"
        "s2video batch configs/batch-shapes.yaml --replicas 2 --nproc 4\n"
        "s2video batch configs/batch-shapes.yaml --version 2 --only triangle --set guidance.cfg_scale=4",
    )
    batch.add_argument("run_file", type=path_argument, nargs="?", metavar="RUNFILE", help="a YAML file")
    batch.add_argument("--config", type=path_argument, metavar="RUNFILE", help="the same")
    batch.add_argument("--dry-run", action="store_true", help="check everything, and print what would be made")
    add_set_argument(batch)
    part = batch.add_argument_group("a part of the shots, or another version of them")
    part.add_argument(
        "--only", type=_names, default=(), metavar="SHOTS", help="names or patterns, such as shot010,sh02*; others stay"
    )
    part.add_argument(
        "--version", type=_version, metavar="N", help="make version N of the shots, and leave the other versions"
    )
    machines = batch.add_argument_group("machines")
    machines.add_argument("--replicas", type=whole_number, default=1, metavar="N", help="that draw from one queue")
    machines.add_argument("--nproc", type=whole_number, default=1, metavar="N", help="ranks of each replica")
    machines.add_argument("--shard", type=_shard, metavar="I/N", help="this machine's part, of N machines, from 1")
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
    batch.add_argument("--plain", action="store_true", help="lines instead of a progress bar")
    batch.set_defaults(run=_batch)

    status = add_command(commands, "status", "Print what of a batch is done, what runs, and what failed")
    status.add_argument("folder", type=path_argument, metavar="RUN", help="the batch's folder, or its run file")
    status.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    status.add_argument(
        "--watch", action="store_true", help="print it again when it changes, until nothing is left to make"
    )
    status.add_argument(
        "--exit-code", action="store_true", help="1: something failed; 3: not finished; without it, 0 for any state"
    )
    status.set_defaults(run=_status)

    pick = add_command(
        commands,
        "pick",
        "Pick or reject takes of a batch, or print them; timelines and pages follow",
        examples="s2video pick runs/batch-shapes\n"
        's2video pick runs/batch-shapes triangle_v002_s0 --note "the better end"\n'
        "s2video pick runs/batch-shapes triangle_v001_s0 --reject",
    )
    pick.add_argument("folder", type=path_argument, metavar="RUN", help="the batch's folder, or its run file")
    pick.add_argument("takes", nargs="*", metavar="TAKE", help="names of videos; none: print all takes")
    either = pick.add_mutually_exclusive_group()
    either.add_argument("--reject", action="store_true", help="reject them instead; a rejected take is not used")
    either.add_argument("--clear", action="store_true", help="forget what was decided about them")
    pick.add_argument("--note", default="", metavar="TEXT", help="why, for others to read")
    pick.set_defaults(run=_pick)

    replica = commands.add_parser("replica")  # without help: started by the supervisor
    replica.add_argument("folder", type=path_argument)
    replica.add_argument("--shard", type=_shard)
    replica.add_argument("--overlap", choices=["auto", "always", "never"], required=True)
    replica.add_argument("--progress", choices=["auto", "plain", "none"], required=True)
    replica.add_argument("--owner", required=True)
    replica.add_argument("--serve", action="store_true")  # wait for jobs of a server
    replica.add_argument("--loaded", type=whole_number, default=1)
    replica.set_defaults(run=_replica)


def batch_folder(path: Path) -> Path:
    """Return the folder of a batch, which is named by itself or by its run file. Raises InputError."""
    return load_batch(path).folder if path.suffix in (".yaml", ".yml") else path


def _pick(arguments: argparse.Namespace) -> int:
    folder = batch_folder(arguments.folder)
    if not arguments.takes:
        if arguments.reject or arguments.clear or arguments.note:
            raise InputError("pick: expected names of takes, got none; s2video pick RUN prints them")
        show(takes_as_text(read_takes(folder)))
        return 0
    read_takes(folder)  # raises before a lock is made in a folder of another kind
    verdict: Verdict | None = None if arguments.clear else "rejected" if arguments.reject else "picked"
    takes = decide(folder, arguments.takes, verdict, note=arguments.note)
    show(takes_as_text(takes))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    folder = batch_folder(arguments.folder)
    shown = None
    while True:
        status = read_status(folder)
        counts = status.counts()
        if counts != shown:
            show(as_json(status) if arguments.json else as_text(status))
            shown = counts
        is_finished = not counts["waiting"] and not counts["running"]
        if is_finished or not arguments.watch:
            break
        time.sleep(_WATCH_SECONDS)
    if not (arguments.exit_code or arguments.watch):
        return 0
    return 1 if counts["failed"] else 0 if is_finished else 3


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
    path = arguments.run_file or arguments.config
    if path is None or (arguments.run_file and arguments.config):
        raise InputError("batch: expected one run file, such as configs/batch-shapes.yaml")
    is_rank = _is_rank()
    if is_rank and (arguments.replicas, arguments.nproc) != (1, 1):
        raise InputError(
            "--replicas and --nproc: expected neither under torchrun, which starts the ranks of one replica"
        )
    world_size = ranks.world_size() if is_rank else arguments.nproc
    batch = load_batch(path, arguments.set, version=arguments.version, only=arguments.only)
    if batch.recipe is not None and not is_rank:
        say(recipe_note(path, batch.recipe))
    open_model = cache(open_checkpoint)
    _require_usable(batch, open_model, world_size, dry_run=arguments.dry_run)
    jobs = list(batch.jobs)
    if arguments.shard is not None:
        index, count = arguments.shard
        jobs = [job for job in jobs if job.take is not None and job.take.number % count == index - 1]
    gpus: Sequence[str] = ()
    if arguments.replicas > 1 and jobs:  # one replica takes all of them
        gpus = visible_gpus(jobs[0].config.model.device)
    plan = ReplicaPlan(arguments.replicas, arguments.nproc, gpus)
    plan.check()
    is_main = ranks.is_main_rank()
    store = Store(batch.folder, arguments.shard)
    wanted = Again(arguments.force, arguments.retry_failed, arguments.overwrite, arguments.keep_changed)
    if arguments.dry_run:
        if is_main:
            check_folder(batch.folder, arguments.shard, path)
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
        return 0
    if not jobs:
        terminal.say("no videos for this shard")
        return 0
    if not is_main:
        return _run_as_rank(store, jobs, batch, arguments.plain)
    with _owned(store, path, arguments.shard):
        replaced, kept = register(jobs, store, open_model, world_size=world_size, wanted=wanted, batch=batch)
        _say_fates(replaced, kept, wanted)
        records = store.records()
        waiting = sum(record.state == "waiting" for record in records)
        terminal.say(f"{waiting} of {len(records)} videos to make in {batch.folder}")
        if is_rank:
            _run_as_rank(store, jobs, batch, arguments.plain)
        else:
            style = "none" if plan.count > 1 else "plain" if arguments.plain else "auto"
            command = ["replica", str(batch.folder), "--overlap", batch.overlap, "--progress", style]
            if arguments.shard is not None:
                command += ["--shard", "/".join(map(str, arguments.shard))]
            settings = jobs[0].config
            idleness = IDLENESS  # a thread that waits for a GPU need not use the CPU
            if settings.model.device != "cpu" and has_gpu():
                idleness = max(IDLENESS, settings.parallel.timeout_seconds)
            if (number := supervise(store, plan, command, idleness=idleness)) is not None:
                _stopped(store, number)
        return _verdict(store)


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


def _require_usable(batch: Batch, open_model: OpenModel, world_size: int, *, dry_run: bool) -> None:
    """Raise InputError after printing what is wrong with each shot."""
    found = find_problems(batch.jobs, open_model, world_size=world_size, images=dry_run)
    problems = list(dict.fromkeys([*batch.problems, *found]))
    if not problems:
        return
    if ranks.speaks_for_host():
        for problem in problems:
            terminal.say(" ".join(problem.split()))
    raise InputError(f"{len(problems)} problems with the shots of this batch, see above; nothing was started")


def _run_as_rank(store: Store, jobs: Sequence[BatchJob], batch: Batch, plain: bool) -> int:
    """Run the only replica, whose ranks torchrun started."""
    from ..batch.replica import run_replica

    owner = f"replica-1-{os.urandom(4).hex()}"
    run_replica(store, jobs[0].config, owner, overlap=batch.overlap, progress="plain" if plain else "auto")
    return 0


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


def _stopped(store: Store, number: int) -> None:
    done = sum(record.state == "done" for record in store.records())
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StoppedError(f"stopped with {done} of {len(store.records())} videos done; run the same command to continue")


def _verdict(store: Store) -> int:
    records = store.records()
    failed = sum(record.state == "failed" for record in records)
    if failed:
        raise S2VideoError(
            f"{failed} of {len(records)} videos failed: s2video status {store.folder} prints why, and --retry-failed "
            "makes them again"
        )
    return 0

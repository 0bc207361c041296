"""A batch from Python: `s2video batch` in a process of its own, its lines in the logger `s2video`, and its results.

The batch runs in processes of its own, so that models, signals and crashes stay out of the program that calls it, which
can be in any thread.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from ..errors import InputError, S2VideoError, StoppedError
from ..media.formats import place_of
from ..system import ranks
from ..system.files import atomic_path, kept_if_refused, user_path
from ..system.processes import tied
from .records import Record, State
from .run_file import RESERVED, Batch, load_batch
from .store import Store

Again = Literal["force", "retry-failed", "overwrite", "keep-changed"]

RUN_FILE = f"{RESERVED}run.yaml"  # holds shots that were given in Python
_MOST_LINES = 50  # of the messages that an error repeats


@dataclass(frozen=True)
class BatchVideo:
    """One video of a batch.

    Attributes:
        path: its file, or the folder of a sequence; it is there if the state is "done".
        state: "done", "failed", or "waiting" and "running" for a shard's part that another process makes.
        error: why it failed, in one line; None if it did not.
        files: all files of a finished video: frames, sidecars, and further formats.
        seconds: from its start to its end; None if it has not ended.
    """

    path: Path
    state: State
    error: str | None
    files: tuple[Path, ...]
    seconds: float | None


def run_batch(
    run_file: str | Path | Mapping[str, Any],
    *,
    replicas: int = 1,
    nproc: int = 1,
    shard: tuple[int, int] | None = None,
    version: int | None = None,
    only: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    again: Collection[Again] = (),
) -> list[BatchVideo]:
    """Make the shots of a batch as `s2video batch` does, and wait until all are made or have failed.

    A call after an interruption continues, and finished videos are kept. Lines of progress and errors go to the logger
    `s2video` of the module logging, and nothing is printed.

    Args:
        run_file: path of a run file, or its content: a mapping with at least `folder` and `shots`. The content is saved
            as FOLDER/batch.run.yaml, with which `s2video batch` and `s2video status` go on.
        replicas, nproc: replicas on this machine, and ranks of each.
        shard: (i, n): this machine makes every n-th video, from the i-th on, counted from 1.
        version: of all shots, in place of `fields.version`.
        only: names or patterns of the shots to make; empty: all.
        settings: changes, by dotted key, as --set.
        again: any of "force" and "retry-failed" (make everything, or what failed, again), "overwrite" and
            "keep-changed" (make videos again whose settings have changed, or leave them).

    Returns:
        Every video of the batch, in the order of the run file, with those that failed.

    Raises:
        InputError: something that cannot be used; nothing was started.
        StoppedError: the batch got SIGTERM or SIGHUP. Ctrl-C raises KeyboardInterrupt. Both stop after a step.
        S2VideoError: the batch could not go on.
    """
    if ranks.world_size() != 1:
        raise InputError("run_batch starts its own ranks: call it without torchrun")
    if unknown := set(again) - set(get_args(Again)):
        raise InputError(f"again: expected some of {', '.join(get_args(Again))}, got {min(unknown)!r}")
    overrides = [f"{key}={_as_yaml(value, key)}" for key, value in (settings or {}).items()]
    with _saved(run_file) as path:
        batch = load_batch(path, overrides, version=version, only=only)
        words = [f"--set={item}" for item in overrides] + [f"--only={pattern}" for pattern in only]
        words += ["--replicas", str(replicas), "--nproc", str(nproc), "--plain"]
        words += [] if shard is None else ["--shard", "/".join(map(str, shard))]
        words += [] if version is None else ["--version", str(version)]
        words += [f"--{name}" for name in again]
        code, lines = _run([sys.executable, "-m", "s2video", "batch", str(path), *words])
        if code == 2:
            raise InputError("; ".join(lines) or "batch: the input cannot be used")
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code > 128:
        stopped = StoppedError(lines[-1] if lines else "the batch was stopped")
        stopped.signal = code - 128
        raise stopped
    videos = _videos(batch, None if shard is None or shard[1] == 1 else shard)
    if code != 0 and not any(video.state == "failed" for video in videos):
        raise S2VideoError(lines[-1] if lines else f"the batch ended with code {code}")
    return videos


def _run(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command whose lines go to the logger. Return its exit code and its last messages."""
    lines: deque[str] = deque(maxlen=_MOST_LINES)
    process = subprocess.Popen(
        tied(command, signal.SIGTERM),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches it through this process alone
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stderr is not None
    with process:
        try:
            _log(process.stderr, lines)
        except BaseException:  # such as Ctrl-C
            process.send_signal(signal.SIGTERM)
            with suppress(KeyboardInterrupt):
                _log(process.stderr, lines)
            raise
        code = process.wait()
    return code if code >= 0 else 128 - code, list(lines)


def _log(stream: IO[str], lines: deque[str]) -> None:
    """Log each line of a batch until its end, and keep what it says about its errors."""
    logger = logging.getLogger("s2video")
    for line in stream:
        text = line.rstrip("\n").removeprefix("s2video: ")
        is_error = text.startswith("error: ")
        logger.log(logging.ERROR if is_error else logging.INFO, "%s", text)
        lines.append(text.removeprefix("error: "))


@contextmanager
def _saved(run_file: str | Path | Mapping[str, Any]) -> Iterator[Path]:
    """Yield the path of a run file; content is saved, and the file is as it was before if the block refuses it."""
    if not isinstance(run_file, Mapping):
        yield user_path(run_file)
        return
    values = dict(run_file)
    if not isinstance(values.get("folder"), (str, Path)) or not values.get("shots"):
        raise InputError("run_batch: expected a path, or a mapping with at least the keys folder and shots")
    folder = user_path(values["folder"])
    if isinstance(values["shots"], (str, Path)):  # relative to this process, as all paths in Python
        values["shots"] = str(user_path(values["shots"]).absolute())
    path, text = folder / RUN_FILE, f"{_as_yaml(values, 'run_batch', indent=2)}\n"
    with kept_if_refused([path]):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        yield path


def _as_yaml(value: Any, name: str, indent: int | None = None) -> str:
    """Return a value as JSON, which is YAML too."""
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected values that YAML can hold, got another ({error})") from None
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)  # YAML refuses or changes these


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike) or hasattr(value, "limit_denominator"):  # paths, ratios
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no number, text, list or mapping")


def _videos(batch: Batch, shard: tuple[int, int] | None) -> list[BatchVideo]:
    store = Store(batch.folder, shard)
    if not store.path.exists():  # no videos for this shard
        return []
    known = {record.name: record for record in store.records()}
    digests = store.digests()
    records = [known[job.name] for job in batch.jobs if job.name in known]
    return [_video(record, batch.folder, digests.get(record.name, {})) for record in records]


def _video(record: Record, folder: Path, digests: Mapping[str, str]) -> BatchVideo:
    files = tuple(folder / path for path in digests)
    return BatchVideo(place_of(folder / record.name), record.state, record.error, files, record.seconds)

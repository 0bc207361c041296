"""What becomes of each job of a batch that is started again: it is kept, made, or refused. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config.marks import PIXELS, marked_settings
from ..config.run import RunConfig
from ..errors import InputError
from ..media.output_paths import OutputPaths
from ..records.replacing import Replaced, check_replacing
from ..system.files import sha256
from ..system.json_reader import parse_json
from .records import Record
from .run_file import BatchJob


@dataclass(frozen=True)
class Again:
    """What the user wants made again.

    Attributes:
        force: every video, whatever there is.
        retry_failed: what failed.
        overwrite: videos whose settings or files have changed, and files that s2video did not make.
        keep_changed: leave videos whose settings have changed as they are.
    """

    force: bool = False
    retry_failed: bool = False
    overwrite: bool = False
    keep_changed: bool = False


@dataclass(frozen=True)
class Fate:
    """What becomes of a job.

    Attributes:
        again: why a job that the state knows is made again; None if it is not.
        problem: why nothing may start, as a sentence.
        replaced: a video that is there and will be replaced.
        is_kept: its settings have changed, and its video is left as it is.
        is_damaged: it is made again because of its files, although it was done and its settings are the same.
    """

    again: str | None = None
    problem: str | None = None
    replaced: Replaced | None = None
    is_kept: bool = False
    is_damaged: bool = False


TO_MAKE = frozenset({"make", "make again", "continue"})


def outlook(fate: Fate, state: str | None) -> str:
    """Return what a start would do with a job, in a word or two.

    Args:
        fate: of a job that may start.
        state: of the job in the batch's state; None if it is new.
    """
    if fate.is_kept:
        return "kept"
    if fate.again is not None:
        return "make again"
    return {"done": "done", "failed": "failed", "running": "continue"}.get(state or "", "make")


def fate_of(
    job: BatchJob,
    key: str,
    old: Record | None,
    *,
    folder: Path,
    digests: Mapping[str, str],
    may_replace: bool,
    wanted: Again,
) -> Fate:
    """Return what becomes of a job.

    Args:
        key: digest of all that determines its pixels (`records.identity.job_key`).
        old: the job in the batch's state; None if it is new.
        folder: the batch's folder.
        digests: of the job's files when it was done, by path below the folder.
        may_replace: an earlier start has found that the job may replace the video that is there.
    """
    files = OutputPaths.of(job.config)
    if old is not None and old.state == "done":
        return _fate_of_done(job, key, old, files, _changes(folder, digests), wanted)
    replaced = None
    if not may_replace:
        try:
            replaced = check_replacing(files, overwrite=wanted.overwrite or wanted.force)
        except InputError as error:
            return Fate(problem=f"{job.where}: {error}")
    if old is not None and wanted.force:
        return Fate("--force", replaced=replaced)
    if old is not None and old.key != key:
        return Fate("something that determines its pixels has changed", replaced=replaced)
    if old is not None and old.state == "failed" and wanted.retry_failed:
        return Fate("--retry-failed", replaced=replaced)
    return Fate(replaced=replaced)


def _fate_of_done(
    job: BatchJob, key: str, old: Record, files: OutputPaths, changes: Mapping[str, str], wanted: Again
) -> Fate:
    if wanted.force:
        return Fate("--force")
    is_there = files.video.exists()
    if old.key != key and is_there and not wanted.overwrite:
        if wanted.keep_changed:
            return Fate(is_kept=True)
        return Fate(
            problem=f"{job.where}: {job.name} was made from other settings ({_what_changed(old, job.config)}): give it "
            "a new name or version, make it again with --overwrite, or leave it with --keep-changed"
        )
    changed = [path for path, change in changes.items() if change == "changed"]
    if changed and not wanted.overwrite:
        return Fate(
            problem=f"{job.where}: {changed[0]} was changed since it was made: move it, or replace it with --overwrite"
        )
    if old.key != key:
        return Fate("something that determines its pixels has changed")
    if changes:
        return Fate(f"{', '.join(changes)} is missing or has changed", is_damaged=True)
    return Fate()


def _changes(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Return which files are "missing" (also if they are empty) or "changed", by path."""
    found = {} if digests else {"its file": "missing"}
    for path, digest in digests.items():
        try:
            is_empty = (folder / path).stat().st_size == 0
            if sha256(folder / path) != digest:
                found[path] = "missing" if is_empty else "changed"
        except OSError:
            found[path] = "missing"
    return found


def _what_changed(old: Record, config: RunConfig) -> str:
    """Return the first setting that differs, or else what remains."""
    texts = (old.config, config.model_dump_json())
    then, now = (_deciding(parse_json(text, f"the settings of {old.name}")) for text in texts)
    differing = (name for name in [*now, *then] if then.get(name) != now.get(name))
    return next(differing, "a file that is read, or the version of a library")


def _deciding(config: Mapping[str, object]) -> dict[str, object]:
    texts = {name: config.get(name) for name in ("prompt", "negative_prompt", "image", "last_image")}
    control = config.get("control")
    files = control if isinstance(control, Mapping) else {}
    texts |= {f"control.{name}": files.get(name) or None for name in ("video", "mask", "references")}
    return texts | marked_settings(config, PIXELS)


def shortened(problems: Iterable[str], most: int = 20) -> list[str]:
    """Return the first of many sentences, and how many more there are."""
    known = list(dict.fromkeys(problems))
    more = len(known) - most
    return [*known[:most], f"and {more} more of this kind"] if more > 0 else known

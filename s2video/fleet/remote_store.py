"""A batch's store as a replica on another machine sees it: every question goes to the keeper.

If the machine does not share the batch's folder, files are made in a folder of its own, and brought to the keeper: a
resume point when it has changed, a video when it is complete. Knows neither Ray nor models.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..batch.records import Record
from ..batch.store import LEASE
from ..config.run import RunConfig
from ..errors import S2VideoError
from ..media.output_paths import OutputPaths
from ..records.sidecar import versions
from ..system.files import atomic_path, sha256
from ..system.processes import Idleness, only_looks
from ..system.shutdown import end_suddenly
from ..system.terminal import say, say_error
from .keeper import PART, PULSE

_RENEWAL = LEASE / 6  # seconds for a renewal; a replica that gets no answer twice ends before its lease does


class Ask(Protocol):
    """Calls a method of the keeper by name.

    Args:
        patience: seconds to wait for its result; without it, long, because a heartbeat ends a replica in time.

    Raises:
        UnreachableError: the keeper did not answer. Otherwise what the method raises.
    """

    def __call__(self, name: str, *arguments: Any, patience: float = ...) -> Any: ...


class UnreachableError(S2VideoError):
    """The keeper did not answer."""


class RemoteStore:
    """A `JobSource`.

    Args:
        ask: the keeper.
        folder: where this machine's files of the batch are.
        collects: bring files to the keeper, because the batch's folder is elsewhere; `folder` must be its own then.
        idle_limit: seconds for which this process may do nothing before it ends; None for a replica of several ranks,
            which watch each other.
    """

    def __init__(self, ask: Ask, folder: Path, *, collects: bool, idle_limit: float | None = None) -> None:
        self.folder = folder
        self._ask = ask
        self._collects = collects
        self._idle_limit = idle_limit
        self._jobs: dict[str, OutputPaths] = {}
        self._steps: dict[str, tuple[int, int]] = {}
        self._sent: dict[str, tuple[int, int]] = {}  # job -> identity of the resume point that was sent
        self._sending = threading.Lock()
        self._answered_at = time.monotonic()
        self._ended = threading.Event()

    @contextmanager
    def presence(self, owner: str) -> Iterator[None]:
        """Be known to the keeper as alive in the block. Raises InputError if this machine has other versions."""
        self._ask("hello", owner, versions())
        self._answered_at = time.monotonic()
        pulse = threading.Thread(target=self._pulse, args=(owner,), name="pulse", daemon=True)
        pulse.start()
        try:
            yield
        finally:
            self._ended.set()
            pulse.join()
        self._ask("goodbye", owner)

    def draw(self, owner: str, models: Sequence[str] = ()) -> Record | None:
        """Draw a job, whose video will be in `folder`. Its resume point is fetched, if there is one."""
        record: Record | None = self._ask("draw", owner, list(models))
        if record is None:
            return None
        config = RunConfig.model_validate_json(record.config)
        # the run file's folder may be relative to one that this machine does not have
        config = config.patched({"output.path": str(self.folder / record.name)}, record.name)
        record = replace(record, config=config.model_dump_json())
        files = OutputPaths.of(config)
        if self._collects:
            self._remove(files)  # of an earlier attempt, which may be older than what the keeper has
            self._fetch(files.resume_point)
            if (identity := _identity(files.resume_point)) is not None:
                self._sent[record.name] = identity
        self._jobs[record.name] = files
        return record

    def renew(self, owner: str) -> set[str]:
        """Renew the leases, and return the jobs that this replica still owns: none if the keeper is silent for long.

        The keeper may have released them meanwhile, so another replica may be making them.
        """
        try:
            owned: set[str] = self._ask("renew", owner, patience=_RENEWAL)
        except UnreachableError as error:
            if time.monotonic() - self._answered_at > LEASE / 2:  # before the lease ends, not after the next renewal
                return set()
            say(error)
            return set(self._jobs)
        self._answered_at = time.monotonic()
        return owned

    def finish(self, name: str, owner: str, digests: Mapping[str, str]) -> bool:
        """Mark a job as done, after its files were brought to the keeper if it needs them."""
        if not self._collects:
            done = bool(self._ask("finish", name, owner, dict(digests)))
        else:
            with self._sending:
                files = self._jobs[name]
                others = (files.latents,) if files.latents.exists() else ()
                for path in (*map(self.folder.joinpath, digests), *others):
                    self._send(owner, path)
                done = bool(self._ask("finish", name, owner, dict(digests), tuple(map(self._name_of, others))))
                self._remove(files)
        self._drop(name)
        return done

    def fail(self, name: str, owner: str, error: str, **facts: Any) -> bool:
        """See `Store.fail`."""
        self._drop(name)
        return bool(self._ask("fail", name, owner, error, facts))

    def give_back(self, owner: str) -> list[str]:
        """Return the jobs to the queue, after their resume points were brought to the keeper."""
        self._send_resume_points(owner)
        names: list[str] = self._ask("give_back", owner)
        return names

    def step_done(self, name: str, step: int, steps: int) -> bool:
        """Take note of a step; the next pulse reports it."""
        self._steps[name] = step, steps
        return True

    def forget(self, name: str) -> None:
        """Do nothing: jobs of a batch are not deleted while they run."""

    def _drop(self, name: str) -> None:
        self._steps.pop(name, None)
        self._jobs.pop(name, None)
        self._sent.pop(name, None)

    def _pulse(self, owner: str) -> None:
        """Report progress, bring resume points, and ask this process to stop when the keeper says so."""
        only_looks()
        idleness, was_told, due = Idleness(), False, 0.0
        while not self._ended.wait(PULSE):
            if self._idle_limit is not None and idleness.update() > self._idle_limit:
                say_error(f"{owner} did nothing for {self._idle_limit:g} s; exiting")
                end_suddenly(1)
            self._send_resume_points(owner)
            if time.monotonic() < due:
                continue
            try:
                pause: float | None = self._ask("pulse", owner, dict(self._steps))
            except S2VideoError:
                continue  # the heartbeat decides about it
            if pause is not None:
                due = time.monotonic() + pause
            elif not was_told:
                was_told = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _send_resume_points(self, owner: str) -> None:
        if not self._collects:
            return
        with self._sending:
            for name, files in list(self._jobs.items()):
                identity = _identity(files.resume_point)
                if identity is None or self._sent.get(name) == identity:
                    continue
                with suppress(OSError, S2VideoError):  # replaced or removed meanwhile: the next pulse looks again
                    digest = sha256(files.resume_point)
                    self._send(owner, files.resume_point)
                    self._ask("keep", name, owner, self._name_of(files.resume_point), digest)
                    self._sent[name] = identity

    def _send(self, owner: str, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            while data := file.read(PART):
                self._ask("send_part", owner, self._name_of(path), offset, data)
                offset += len(data)

    def _fetch(self, path: Path) -> None:
        data: bytes | None = self._ask("read_part", self._name_of(path), 0)
        if data is None:
            return
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            while data:
                file.write(data)
                data = self._ask("read_part", self._name_of(path), file.tell())

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _remove(self, files: OutputPaths) -> None:
        for path in files.all:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from the one that is renamed to its path later; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns

"""The one process that holds a batch's store while replicas on other machines draw from it.

SQLite must not be used by several machines over a network file system, so they ask the keeper. Its methods take and
return plain values, and can be called from anywhere: it knows neither Ray nor how a call arrives. It also takes the
files of machines that do not share the batch's folder. Only one call runs at a time.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..batch.records import Record, Released
from ..batch.run_file import RESERVED
from ..batch.store import Store
from ..errors import InputError, S2VideoError
from ..media.output_paths import OutputPaths
from ..system.files import put_in_place

INCOMING = f"{RESERVED}incoming"  # folder of files that are still being received
PART = 8 * 2**20  # bytes that are sent at once
PULSE = 2.0  # the least seconds between two reports of a replica, which is also how soon a request to stop arrives
_PULSES = 100.0  # reports in a second, of all replicas together
_MOST_NEWS = 10_000  # lines that wait to be printed; older ones are dropped

Stream = Literal["output", "error"]
Files = Literal["auto", "shared", "collect"]  # whether machines share the batch's folder; "auto": each looks


@dataclass(frozen=True)
class News:
    """A line that a replica printed."""

    source: str
    stream: Stream
    text: str


@dataclass
class _Replica:
    """What the keeper knows of a live replica.

    Attributes:
        alive: holds its lock file.
        steps: of its jobs: steps done and steps in all.
        received: of files that it sends, by path below the batch's folder: their digest so far, and their bytes.
    """

    alive: ExitStack
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    received: dict[str, tuple[Any, int]] = field(default_factory=dict)


class Keeper:
    """The holder of a batch's store.

    Args:
        folder: the batch's folder, on a disk of this machine or a shared one.
        versions: of the packages that decide about the bits of a video; replicas must have the same.
        ticks: see `Store`.
    """

    def __init__(
        self, folder: str, versions: Mapping[str, str], *, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = Store(Path(folder), keeps_open=True, ticks=ticks)
        self._versions = dict(versions)
        self._replicas: dict[str, _Replica] = {}
        self._stopping: set[str] = set()  # replicas that have to stop, some before they are known here
        self._news: deque[News] = deque(maxlen=_MOST_NEWS)
        self._open = Counter(self._store.count_open())  # this process is the only one that changes them

    # For replicas

    def hello(self, owner: str, versions: Mapping[str, str]) -> None:
        """Take note of a new replica. Raises InputError if it has other versions than this process."""
        differing = [n for n in self._versions if n != "python" and self._versions[n] != versions.get(n)]
        if differing:
            name = differing[0]
            raise InputError(
                f"expected {name} {self._versions[name]} on every machine, as where the batch was started, got "
                f"{versions.get(name)}; install the same versions"
            )
        with ExitStack() as stack:
            stack.enter_context(self._store.presence(owner))
            self._replicas[owner] = _Replica(stack.pop_all())

    def goodbye(self, owner: str) -> None:
        """Forget a replica that has ended, or whose end was seen; what it was making can be released."""
        shutil.rmtree(self._staging(owner), ignore_errors=True)
        if (replica := self._replicas.pop(owner, None)) is not None:
            replica.alive.close()

    def draw(self, owner: str, models: Sequence[str] = ()) -> Record | None:
        """Return as `Store.draw`; None also for a replica that was asked to stop."""
        self._known(owner)
        if owner in self._stopping:
            return None
        record = self._store.draw(owner, models)
        if record is not None:
            self._count(waiting=-1, running=1)
        return record

    def renew(self, owner: str) -> set[str]:
        """Return as `Store.renew`; nothing for a replica that counts as ended."""
        return self._store.renew(owner) if owner in self._replicas else set()

    def pulse(self, owner: str, steps: Mapping[str, tuple[int, int]]) -> float | None:
        """Take note of a replica's progress. Writes nothing to the disk.

        Returns:
            The seconds until the next call, more for more replicas; None if it has to stop.
        """
        replica = self._known(owner)
        replica.steps = dict(steps)
        return None if owner in self._stopping else max(PULSE, len(self._replicas) / _PULSES)

    def finish(self, name: str, owner: str, digests: Mapping[str, str], others: tuple[str, ...] | None = None) -> bool:
        """Mark a job as done; see `Store.finish`.

        Args:
            others: None if its files are in the batch's folder; otherwise those that were received and have no digest.

        Raises:
            S2VideoError: a received file is not what the replica sent.
        """
        if others is not None:
            if name not in self.renew(owner):
                return False
            self._unpack(owner, digests, others)
            OutputPaths(self._store.folder / name).resume_point.unlink(missing_ok=True)
        done = self._store.finish(name, owner, digests)
        self._count(running=-done)
        return done

    def fail(self, name: str, owner: str, error: str, facts: Mapping[str, Any]) -> bool:
        """See `Store.fail`."""
        failed = self._store.fail(name, owner, error, **facts)
        self._count(running=-failed)
        return failed

    def give_back(self, owner: str) -> list[str]:
        """See `Store.give_back`."""
        names = self._store.give_back(owner)
        self._count(waiting=len(names), running=-len(names))
        return names

    def tell(self, source: str, stream: Stream, text: str) -> None:
        """Take a line that a replica prints."""
        self._news.append(News(source, stream, text))

    # Files of replicas that do not share the batch's folder

    def send_part(self, owner: str, path: str, offset: int, data: bytes) -> None:
        """Receive a part of a file; parts come in order, and the first one begins the file again.

        Args:
            path: below the batch's folder.
            offset: of the part, in bytes.

        Raises:
            InputError: a path outside the folder, or a part that does not follow the last one.
            S2VideoError: the disk is full.
        """
        replica, target = self._known(owner), self._staging(owner) / _inside(path)
        digest, size = replica.received.get(path, (hashlib.sha256(), 0)) if offset else (hashlib.sha256(), 0)
        if offset != size:
            raise InputError(f"{path}: expected the part at byte {size}, got the one at {offset}; send it again")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(data)
        except OSError as error:
            raise S2VideoError(f"{target}: {error.strerror}; check the disk and its free space") from None
        digest.update(data)
        replica.received[path] = digest, size + len(data)

    def keep(self, name: str, owner: str, path: str, sha256: str) -> bool:
        """Put a received file, such as a resume point, into its place. Return False if the job is not the replica's."""
        if name not in self.renew(owner):
            return False
        self._check_received(owner, path, sha256)
        put_in_place(self._staging(owner) / path, self._store.folder / path)
        return True

    def read_part(self, path: str, offset: int) -> bytes | None:
        """Return up to `PART` bytes of a file in the batch's folder; None if there is none."""
        try:
            with (self._store.folder / _inside(path)).open("rb") as file:
                file.seek(offset)
                return file.read(PART)
        except OSError:
            return None

    # For the supervisor, with the names of `Store`

    def stop(self, owner: str) -> None:
        """Ask a replica to stop after its step; one that is still starting will draw no job."""
        self._stopping.add(owner)

    def take_news(self) -> list[News]:
        """Return the lines that replicas printed since the last call."""
        news = list(self._news)
        self._news.clear()
        return news

    def steps(self) -> dict[str, tuple[int, int]]:
        """Return how far the jobs are that are being made: steps done, and steps in all."""
        return {name: steps for replica in self._replicas.values() for name, steps in replica.steps.items()}

    def owners(self) -> set[str]:
        """See `Store.owners`."""
        return self._store.owners()

    def has_drawn(self, owner: str) -> bool:
        """See `Store.has_drawn`."""
        return self._store.has_drawn(owner)

    def release(self) -> list[Released]:
        """See `Store.release`."""
        released = self._store.release(self._replicas)
        failed = sum(job.error is not None for job in released)
        self._count(running=-len(released), waiting=len(released) - failed)
        return released

    def count_open(self) -> dict[str, int]:
        """Return as `Store.count_open`, without asking it: that takes milliseconds for 100,000 jobs."""
        return {state: number for state, number in self._open.items() if number}

    def log(self, event: str, facts: Mapping[str, Any]) -> None:
        """See `Store.log`."""
        self._store.log(event, **facts)

    def close(self) -> None:
        """Close the store, and forget all replicas."""
        for owner in list(self._replicas):
            self.goodbye(owner)
        self._store.close()

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        self._open["waiting"] += waiting
        self._open["running"] += running

    def _known(self, owner: str) -> _Replica:
        if owner not in self._replicas:
            raise S2VideoError(f"{owner} counts as ended, because its end was seen or it was silent for too long")
        return self._replicas[owner]

    def _staging(self, owner: str) -> Path:
        return self._store.folder / INCOMING / _inside(owner)

    def _check_received(self, owner: str, path: str, sha256: str) -> None:
        found = self._known(owner).received.pop(path, None)
        if found is None or found[0].hexdigest() != sha256:
            raise S2VideoError(
                f"{path}: expected the file with SHA-256 {sha256[:12]}…, got another one from {owner}; make it again "
                "with --retry-failed"
            )

    def _unpack(self, owner: str, digests: Mapping[str, str], others: tuple[str, ...]) -> None:
        """Put the received files of a job into their places, those of a sequence all at once."""
        for path, digest in digests.items():
            self._check_received(owner, path, digest)
        staging, folder = self._staging(owner), self._store.folder
        for entry in (*others, *_roots(digests)):
            put_in_place(staging / _inside(entry), folder / entry)


def _roots(digests: Mapping[str, str]) -> list[str]:
    """Return what is to be moved: sidecars first, then files, and folders of frames, which are beside their sidecar."""
    sidecars = [path for path in digests if path.endswith(".json")]
    folders = {PurePosixPath(path).parent for path in sidecars}
    rest = [PurePosixPath(path) for path in digests if path not in sidecars]
    roots = [path if path.parent in folders or not sidecars else path.parent for path in rest]
    return [*sidecars, *dict.fromkeys(root.as_posix() for root in roots)]


def _inside(path: str) -> PurePosixPath:
    """Return a path below the batch's folder. Raises InputError for one that leaves it."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\0" in path:
        raise InputError(f"expected a path below the batch's folder, got {path[:200]!r}")
    return pure

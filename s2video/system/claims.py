"""A claim on the files of one job: while a process holds it, no other one writes files of these names.

A claim is a lock file next to the files. The system releases the lock when the process ends in any way, so temporary
files that are there when a claim is made were left by a process that has died, and are removed. Knows nothing about
what is written.
"""

from __future__ import annotations

import atexit
import errno
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from ..errors import InputError, S2VideoError
from .files import remove_leftovers
from .locks import try_lock
from .shutdown import at_sudden_end
from .terminal import say

PATIENCE = 45.0  # seconds until the system has taken a lock from a process of another machine that was killed
_LOOK_INTERVAL = 0.25  # seconds between two looks at a claim that another process holds
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_Identity = tuple[int, int, int, int] | None  # of a file; None: there is none


class Claim:
    """The right to write some files, until `release` or the end of the process.

    Args:
        lock: path of the lock file, in the folder of the files. Missing folders are created.
        files: all files that the holder may write or remove, which are all that the same lock is used for.
        patience: seconds to wait for another process that holds it, such as one that is about to end.

    Raises:
        InputError: another process holds it, or the lock file cannot be written.
    """

    def __init__(self, lock: Path, files: Sequence[Path], *, patience: float = 0.0) -> None:
        self._lock = lock
        self._descriptor, is_new = _locked(lock, files[0], time.monotonic() + patience)
        self._clean_up = ExitStack()
        self._clean_up.enter_context(at_sudden_end(self._remove_lock))
        try:
            if not is_new:  # a process that was killed has left its lock file, and may have left more
                remove_leftovers(files)
            self._before = {path: _identity(path) for path in files}
        except BaseException:
            self.release()
            raise
        atexit.register(self.release)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check_unchanged(self, path: Path, remedy: str) -> None:
        """Raise S2VideoError if a file at `path` is not the one that was there when the claim was made.

        Args:
            path: one of the files.
            remedy: what to do, for the message.
        """
        now = _identity(path)
        if now is not None and now != self._before[path]:
            raise S2VideoError(f"{path}: another program wrote this file while the video was made; {remedy}")

    def release(self) -> None:
        """Give the claim back. Does nothing the second time."""
        atexit.unregister(self.release)
        self._clean_up.close()
        if self._descriptor is not None:
            self._remove_lock()
            os.close(self._descriptor)
            self._descriptor = None

    def _remove_lock(self) -> None:
        """Remove the file while it is locked, so that no other process can hold a lock on a file without a name."""
        if self._descriptor is not None:
            self._lock.unlink(missing_ok=True)


class Claims:
    """Claims on several sets of files at once, all or none.

    Args:
        locks: the files of each lock file; see `Claim`.
        patience: see `Claim`.

    Raises:
        InputError: another process holds one of them, or a lock file cannot be written.
    """

    def __init__(self, locks: Mapping[Path, Sequence[Path]], *, patience: float = 0.0) -> None:
        self._held: list[tuple[Claim, frozenset[Path]]] = []
        try:
            for lock in sorted(locks):  # in one order, so that two processes never wait for each other
                self._held.append((Claim(lock, locks[lock], patience=patience), frozenset(locks[lock])))
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check_unchanged(self, path: Path, remedy: str) -> None:
        """Raise S2VideoError if a file at `path` is not the one that was there when the claims were made."""
        for claim, files in self._held:
            if path in files:
                claim.check_unchanged(path, remedy)

    def release(self) -> None:
        """Give all claims back. Does nothing the second time."""
        for claim, _ in reversed(self._held):
            claim.release()


def check_unclaimed(locks: Mapping[Path, Sequence[Path]]) -> None:
    """Raise InputError if another process holds one of some claims, given as to `Claims`. Writes nothing."""
    for lock, files in locks.items():
        with suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(lock, os.O_RDWR)
            try:
                if not try_lock(descriptor):
                    raise _held(descriptor, files[0])
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            finally:
                os.close(descriptor)


def _locked(lock: Path, named: Path, deadline: float) -> tuple[int | None, bool]:
    """Open the lock file and lock it. Return the descriptor, and whether the file is new.

    None: the file system has no locks, which is said.
    """
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            is_new = not lock.exists()
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"cannot write {named}: {error.strerror}; choose another output path") from error
        try:
            if not try_lock(descriptor):
                if time.monotonic() >= deadline:
                    raise _held(descriptor, named)
                time.sleep(_LOOK_INTERVAL)
            elif _is_at(lock, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
                return descriptor, is_new
        except BaseException as error:
            os.close(descriptor)
            if not isinstance(error, OSError) or error.errno not in _NO_LOCKS:
                raise
            say(f"{lock.parent}: no file locks here ({error.strerror}); do not make {named.name} twice at once")
            lock.unlink(missing_ok=True)
            return None, True
        os.close(descriptor)  # it is held, or its holder has removed it after we opened it


def _held(descriptor: int, named: Path) -> InputError:
    pid, _, host = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip().partition(" ")
    holder = f"process {pid} on {host}" if pid.isdigit() else "another process"
    return InputError(f"{named}: {holder} is making this video; wait for it, stop it, or choose another output path")


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _identity(path: Path) -> _Identity:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

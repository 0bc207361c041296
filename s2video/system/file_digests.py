"""SHA-256 of large files, computed once: a cache of digests by the identity of a file.

The identity is what the file system says of a file: device, inode, size, and the times of its last change. A program
cannot choose the time of the last change of the inode (ctime), so another content has another identity, unless it was
written within the clock's resolution. Files that changed in the last seconds are therefore not cached.

The cache is in the user's cache folder, an entry a file. It is used only if folder and entry belong to this user, and
no other user can write them; otherwise files are hashed each time. A name is never believed: a file in the Hub's cache
is called by its SHA-256, but any file can be.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, S2VideoError
from .files import atomic_path
from .json_reader import parse_json

LEAST_BYTES = 64_000_000  # smaller files are hashed in a tenth of a second
SETTLED_SECONDS = 2.0  # file systems count time in steps of up to two seconds
MAX_ENTRIES = 4000
_MAX_ENTRY_BYTES = 4096


class FileIdentity(NamedTuple):
    """What the file system says of a file."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """Return the identity of the file that `path` leads to. Raises OSError."""
        return cls._from(os.stat(path))

    @classmethod
    def _from(cls, found: os.stat_result) -> FileIdentity:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def file_digest(path: Path, identity: FileIdentity | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal, from the cache if it is there.

    Args:
        identity: of the file when it was opened before; None: as it is now.

    Raises:
        InputError: the file is gone, cannot be read, or has changed since or while it is read.
    """
    try:
        with path.open("rb") as file:
            before = FileIdentity._from(os.fstat(file.fileno()))
            if identity is not None and before != identity:
                raise _changed(path)
            entry = _entry(path, before) if before.size >= LEAST_BYTES else None
            if entry is not None and (known := _read(entry, before)) is not None:
                return known
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if FileIdentity._from(os.fstat(file.fileno())) != before:
                raise _changed(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    newest = max(before.modified_ns, before.changed_ns) / 1e9
    if entry is not None and time.time() - newest > SETTLED_SECONDS:
        _write(entry, before, digest)
    return digest


def cache_folder() -> Path:
    """Return where digests are kept: in $XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "s2video" / "digests"


def _changed(path: Path) -> InputError:
    return InputError(f"{path}: changed while it was in use; start again when nothing writes to it")


def _entry(path: Path, identity: FileIdentity) -> Path | None:
    key = json.dumps([os.path.realpath(path), *identity])
    try:
        return cache_folder() / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.json"
    except RuntimeError:  # a user without a home
        return None


def _read(entry: Path, identity: FileIdentity) -> str | None:
    """The digest in an entry of the cache; None if there is none that only this user can have written."""
    try:
        if not _is_private(os.lstat(entry.parent), stat.S_ISDIR):
            return None
        descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not _is_private(os.fstat(descriptor), stat.S_ISREG):
                return None
            values = parse_json(file.read(_MAX_ENTRY_BYTES), str(entry))
        digest = values["sha256"]
        is_one = isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
        return digest if is_one and values["identity"] == list(identity) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_private(found: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    return is_kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _write(entry: Path, identity: FileIdentity, digest: str) -> None:
    """Add an entry; without a folder of this user's own, nothing is kept."""
    with suppress(OSError, InputError, S2VideoError):
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(os.lstat(entry.parent), stat.S_ISDIR):
            return
        with atomic_path(entry) as temporary:
            temporary.write_text(json.dumps({"identity": list(identity), "sha256": digest}), encoding="utf-8")
            temporary.chmod(0o600)
        entries = sorted(entry.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for old in entries[:-MAX_ENTRIES]:
            old.unlink(missing_ok=True)

"""Atomic writes of files and folders: each is written under a temporary name next to its final one, then renamed.

Knows nothing about the contents.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import InputError, S2VideoError
from .shutdown import at_sudden_end

MAX_NAME, MAX_PATH = 255, 4095  # bytes; the limits of Linux, and of most file systems for a name
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def user_path(path: str | Path, field: str = "") -> Path:
    """Return a path that a person or a file gave, with a leading ~ or ~user expanded.

    Args:
        field: the setting that holds it, for the message.

    Raises:
        InputError: there is no such user, or no system has files of this name: it is too long, or has a NUL.
    """
    source = f"{field} {str(path)[:80]!r}".strip()
    if "\0" in str(path):
        raise InputError(f"{source}: expected a path, got one with a NUL character; remove it")
    try:
        expanded = Path(path).expanduser()
        parts = [os.fsencode(part) for part in expanded.parts]
    except RuntimeError:
        raise InputError(f"{source}: expected the name of a user after ~, or nothing; write the whole path") from None
    except UnicodeEncodeError:
        raise InputError(f"{source}: expected a path, got text that no file name can hold; change it") from None
    if max(map(len, parts), default=0) > MAX_NAME or sum(map(len, parts)) + len(parts) > MAX_PATH:
        raise InputError(
            f"{source}: too long: expected names of at most {MAX_NAME} bytes in a path of at most {MAX_PATH}; shorten "
            "it"
        )
    return expanded


@dataclass(frozen=True)
class Beside:
    """A JSON file that describes another file or folder, and gets its final name together with it.

    Attributes:
        path: of the JSON file.
        content: takes the finished file or folder, under its temporary name, and returns what the JSON file says.
    """

    path: Path
    content: Callable[[Path], object]


@contextmanager
def atomic_path(path: Path, beside: Beside | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds.

    The temporary name is hidden, new, and ends in the suffix of `path`, so that programs that read the suffix write the
    right format. The block must create the file. Missing folders are created. An older file at `path` is kept until the
    new one replaces it in one step.

    If the block raises any exception, including KeyboardInterrupt, the temporary file is removed, `path` and `beside`
    are unchanged, and the exception propagates.

    Args:
        beside: the JSON file is renamed immediately before `path`, and gets its former content back if that fails. If
            the process is killed between the two renames, the new JSON file is next to the old file, or to none.

    Raises:
        InputError: before the block starts, if a file cannot be created there.
        S2VideoError: the disk is full, or a quota or the file size limit is exceeded.
    """
    temporary = _temporary_next_to(path)
    remove = partial(temporary.unlink, missing_ok=True)
    with at_sudden_end(remove), _full_disk_reported(path):
        try:
            yield temporary
            _flush_to_disk(temporary)
            with _renamed_before(beside, temporary):
                os.replace(temporary, path)
        finally:
            remove()


@contextmanager
def atomic_folder(folder: Path, is_ours: Callable[[str], bool], beside: Beside | None = None) -> Iterator[Path]:
    """Yield a new empty folder next to `folder` under a hidden name, and rename it to `folder` if the block succeeds.

    An older folder is kept until then and replaced as a whole, so that `folder` never mixes files of two runs. On Linux
    this is one step. (Elsewhere, if the process is killed between two renames, `folder` is missing and the old one has
    a hidden name.)

    Args:
        is_ours: whether the block could write a file of this name. An older folder that holds others is refused.
        beside: as in `atomic_path`.

    If the block raises any exception, the new folder is removed, and the exception propagates.

    Raises:
        InputError: before the block starts, if the folder cannot be created or holds other files.
        S2VideoError: the disk is full, or a quota or the file size limit is exceeded.
    """
    check_replaceable(folder, is_ours)
    temporary, former = _hidden_next_to(folder), _hidden_next_to(folder)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another output path") from error
    remove = partial(shutil.rmtree, temporary, ignore_errors=True)
    with at_sudden_end(remove), _full_disk_reported(folder):
        try:
            yield temporary
            for path in temporary.iterdir():
                _flush_to_disk(path)
            check_replaceable(folder, is_ours)  # files may have been added while the block ran
            with _renamed_before(beside, temporary):
                _replace_folder(temporary, folder, former)
            shutil.rmtree(former, ignore_errors=True)
        finally:
            remove()


def _replace_folder(temporary: Path, folder: Path, former: Path) -> None:
    try:
        if folder.exists():
            if _exchange(temporary, folder):
                temporary.rename(former)
                return
            folder.rename(former)
        temporary.rename(folder)
    except BaseException:
        if former.exists() and not folder.exists():
            former.rename(folder)
        raise


def put_in_place(source: Path, target: Path) -> None:
    """Rename a finished file, or a folder of files, to `target` in place of what is there, on the same file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        _flush_to_disk(source)
        os.replace(source, target)
        return
    for path in source.iterdir():
        _flush_to_disk(path)
    former = _hidden_next_to(target)
    _replace_folder(source, target, former)
    shutil.rmtree(former, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step, where the system can; return whether it did."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


@contextmanager
def _renamed_before(beside: Beside | None, temporary: Path) -> Iterator[None]:
    """Write the JSON file before the block, which renames `temporary`. If that is not renamed, undo this."""
    if beside is None:
        yield
        return
    former = beside.path.read_bytes() if beside.path.is_file() else None
    try:
        write_json(beside.path, beside.content(temporary))
        yield
    except BaseException:
        if temporary.exists():
            restore(beside.path, former)
        raise


@contextmanager
def kept_if_refused(paths: Iterable[Path]) -> Iterator[None]:
    """Give files their former content back if the block raises InputError, and remove folders that were new."""
    former = {path: path.read_bytes() if path.is_file() else None for path in paths}
    new = {path.parent for path in former if not path.parent.exists()}
    try:
        yield
    except InputError:
        for path, content in former.items():
            restore(path, content)
        for folder in new:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


def restore(path: Path, former: bytes | None) -> None:
    """Give a file the content that it had before; None: it did not exist."""
    if former is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != former:
        with atomic_path(path) as again:
            again.write_bytes(former)


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a path below a folder, or a folder between them, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def check_replaceable(folder: Path, is_ours: Callable[[str], bool], what: str = "frames of that sequence") -> None:
    """Raise InputError if `folder` exists but is not a folder, or holds files with other names; `what` names ours."""
    try:
        strangers = [entry.name for entry in os.scandir(folder) if not (entry.is_file() and is_ours(entry.name))]
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another output path") from error
    if strangers:
        raise InputError(
            f"cannot write {folder}: expected only {what} in this folder, got {min(strangers)!r}; choose another "
            "output path"
        )


def write_json(path: Path, obj: object) -> None:
    """Write `obj` to `path` atomically as indented UTF-8 JSON with a final newline.

    Raises:
        InputError: a file cannot be created there.
        TypeError: `obj` holds a type that JSON cannot represent.
        ValueError: `obj` holds NaN or infinity, which JSON cannot represent.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; for a folder, that of the output of `sha256sum *` in it."""
    if path.is_dir():
        lines = [f"{sha256(file)}  {file.name}\n" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def _temporary_next_to(path: Path) -> Path:
    """Return a free hidden name in the folder of `path`. Check that `path` can be written, and leave no file."""
    temporary = _hidden_next_to(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_target(path)
        # 0o666 lets the umask set the permissions, as for any file; tempfile would make the file private.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another output path") from error
    return temporary


def check_target(path: Path) -> None:
    """Raise InputError if a rename to `path` would replace anything but a regular file, or would fail.

    It would replace a device such as /dev/null, and fail on a folder. A symbolic link to a file is replaced by the new
    file; one that leads to nothing, or to a device, was surely meant as a place to write to, and would be lost.
    """
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            found = os.stat(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(
                f"cannot write {path}: expected a regular file or none, got a symbolic link to {os.readlink(path)}, "
                "which does not exist; remove the link, or choose another output path"
            ) from None
        return
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another output path") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "another kind of file")
        raise InputError(
            f"cannot write {path}: expected a regular file or none, got {kind}; choose another output path"
        )
    _check_sticky(path, found)


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def _check_sticky(path: Path, found: os.stat_result) -> None:
    """Raise InputError for a file of another user in a folder such as /tmp, where only its owner can replace it."""
    folder, user = os.stat(path.absolute().parent), os.geteuid()
    if folder.st_mode & stat.S_ISVTX and user not in (0, found.st_uid, folder.st_uid):
        raise InputError(
            f"cannot write {path}: the file belongs to another user, and only its owner can replace it in this "
            "folder; choose another output path"
        )


def _hidden_next_to(path: Path) -> Path:
    return path.with_name(f"{_hidden_start(path)}{secrets.token_hex(4)}{path.suffix}")


def _hidden_start(path: Path) -> str:
    # The stem helps people who find the file after a power cut. It is cut so that a final name of any legal length
    # (255 bytes, up to four per character) has a legal temporary name; the digest tells long names apart.
    return f".{path.stem[:24]}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}"


@contextmanager
def _full_disk_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise S2VideoError(f"cannot write {path}: {error.strerror}; free some space or choose another path") from error


def _flush_to_disk(path: Path) -> None:
    """Flush the file, or a power cut soon after the rename could leave an empty file under the final name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove the temporary files of processes that were killed while they wrote one of `paths`.

    Call this only if no process is writing to one of these names, as the holder of their `Claim`.
    """
    wanted: dict[Path, set[tuple[str, str]]] = {}
    for path in paths:
        wanted.setdefault(path.parent, set()).add((_hidden_start(path), path.suffix))
    for folder, names in wanted.items():
        with suppress(FileNotFoundError):
            for entry in list(os.scandir(folder)):
                match = re.fullmatch(r"(\..*\.[0-9a-f]{8})[0-9a-f]{8}(\.[^.]+)?", entry.name, re.DOTALL)
                if match is None or (match[1], match[2] or "") not in names:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    Path(entry).unlink(missing_ok=True)

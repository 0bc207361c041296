"""Files, and folders of files, that are whole or not there: written beside their final name, then renamed.

Knows nothing of what is in the files.
"""

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
from functools import partial
from pathlib import Path

from ..errors import InputError, S2VideoError
from .shutdown import at_sudden_end

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    The temporary name is hidden, new, and ends in the suffix of `path`, so that programs which look at the
    suffix write the right format. No file has that name yet: the block must write one. Missing folders are
    created. An older file at `path` stays as it is until the new one takes its place in one step.

    If the block raises anything, KeyboardInterrupt included, the temporary file is removed, nothing appears at
    `path`, and the exception goes on.

    Raises:
        InputError: before the block starts, if a file cannot be created there.
        S2VideoError: the disk, a quota or the largest size of a file was too small.
    """
    temporary = _temporary_beside(path)
    remove = partial(temporary.unlink, missing_ok=True)
    with at_sudden_end(remove), _full_disk_told(path):
        try:
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            remove()


@contextmanager
def atomic_folder(folder: Path, is_ours: Callable[[str], bool]) -> Iterator[Path]:
    """Yield a new empty folder beside `folder`, under a hidden name; it becomes `folder` when the block ends well.

    An older folder stays as it is until then, and is replaced whole: what stands under the final name is always of one
    making. (A process killed between the two renames leaves nothing there, and the old one under a hidden name.)

    Args:
        is_ours: whether a name is one that the block would write. An older folder with anything else in it is refused.

    If the block raises anything, the new folder is removed, and the exception goes on.

    Raises:
        InputError: before the block starts, if the folder cannot be made there or holds what is not ours.
        S2VideoError: the disk, a quota or the largest size of a file was too small.
    """
    check_replaceable(folder, is_ours)
    temporary, former = _hidden_beside(folder), _hidden_beside(folder)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another output path") from error
    remove = partial(shutil.rmtree, temporary, ignore_errors=True)
    with at_sudden_end(remove), _full_disk_told(folder):
        try:
            yield temporary
            for path in temporary.iterdir():
                _flush_to_disk(path)
            check_replaceable(folder, is_ours)  # something may have come while the block ran
            try:
                if folder.exists():
                    folder.rename(former)
                temporary.rename(folder)
            except BaseException:
                if former.exists() and not folder.exists():
                    former.rename(folder)
                raise
            shutil.rmtree(former, ignore_errors=True)
        finally:
            remove()


def check_replaceable(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Raise InputError if something is at `folder` that is no folder, or one that holds files with other names."""
    try:
        strangers = [entry.name for entry in os.scandir(folder) if not (entry.is_file() and is_ours(entry.name))]
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another output path") from error
    if strangers:
        raise InputError(
            f"cannot write {folder}: this folder holds {min(strangers)!r}, which is no frame of that sequence; "
            "choose another output path"
        )


def write_json(path: Path, obj: object) -> None:
    """Write `obj` to `path` as indented UTF-8 JSON with a newline at its end, whole or not at all.

    Raises:
        InputError: if a file cannot be created there.
        TypeError: if `obj` holds what JSON has no form for.
        ValueError: if `obj` holds NaN or an infinity, which JSON has no form for either.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; of a folder, that of what `sha256sum *` prints inside it."""
    if path.is_dir():
        lines = [f"{sha256(file)}  {file.name}\n" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def _temporary_beside(path: Path) -> Path:
    """A free hidden name in the folder of `path`; proves that `path` can be written, and leaves no file."""
    temporary = _hidden_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A rename would replace a device such as /dev/null, and fail on a folder or on a name that is too long.
        # Better to know before hours of work than after them.
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise InputError(f"cannot write {path}: it exists and is not a regular file; choose another name")
        # 0o666 lets the umask decide about permissions, as for any file; tempfile would make it private.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another output path") from error
    return temporary


def _hidden_beside(path: Path) -> Path:
    # The stem is there for people who find the file after a power cut. It is cut so that a final name of any
    # legal length (255 bytes, up to four to a letter) has a legal temporary one.
    return path.with_name(f".{path.stem[:32]}.{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise S2VideoError(f"cannot write {path}: {error.strerror}; free some space or choose another path") from error


def _flush_to_disk(path: Path) -> None:
    """Without this, a power cut soon after the rename can leave an empty file under the final name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove the temporary files of processes that were killed while they wrote one of `paths`.

    Only where nobody writes them now, nor any other path in their folders.
    """
    wanted: dict[Path, set[tuple[str, str]]] = {}
    for path in paths:
        wanted.setdefault(path.parent, set()).add((path.stem[:32], path.suffix))
    for folder, names in wanted.items():
        with suppress(FileNotFoundError):
            for entry in list(folder.iterdir()):
                match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}(\.[^.]+)?", entry.name, re.DOTALL)
                if match is None or (match[1], match[2] or "") not in names:
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

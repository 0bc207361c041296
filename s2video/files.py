"""Files that are whole or not there: written beside their final name, then renamed.

Knows nothing of what is in the files.
"""

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from .ending import at_sudden_end
from .errors import InputError, S2VideoError

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
    with at_sudden_end(remove):
        try:
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise S2VideoError(
                f"cannot write {path}: {error.strerror}; free some space or choose another path"
            ) from error
        finally:
            remove()


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


def _temporary_beside(path: Path) -> Path:
    """A free hidden name in the folder of `path`; proves that `path` can be written, and leaves no file."""
    # The stem is there for people who find the file after a power cut. It is cut so that a final name of any
    # legal length (255 bytes, up to four to a letter) has a legal temporary one.
    temporary = path.with_name(f".{path.stem[:32]}.{secrets.token_hex(4)}{path.suffix}")
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

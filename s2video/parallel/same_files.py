"""Agreement of ranks on the values in their weight files, without hashing where a look at the file system is enough.

Ranks of one host that read the same file (device, inode, size and times are equal) have the same values. Otherwise one
rank of each host hashes each such file, and the digests are compared.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from ..errors import InputError
from ..system.file_digests import FileIdentity
from .collectives import gather_objects
from .mesh import Axis

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def value_digests(
    files: Mapping[str, tuple[Path, FileIdentity]], digest: Callable[[str], str], axis: Axis
) -> dict[str, str]:
    """Return for each file a text that is equal on two ranks only if the file's content is. All ranks call it together.

    Args:
        files: names -> this rank's path and the identity of the file that was read there.
        digest: returns the SHA-256 of one of them, by name; called for files that are not the same on all ranks.

    Raises:
        InputError: on all ranks, if a file has changed on one of them since it was read.
    """
    own = {name: (_host(), *identity) for name, (_, identity) in files.items()}
    everyone = gather_objects((own, _first_change(files)), axis)
    for rank, (_, problem) in enumerate(everyone):
        if problem is not None:
            raise InputError(f"rank {rank}: {problem}" if axis.size > 1 else problem)
    of_ranks = [held for held, _ in everyone]
    hashed = {}
    for name, identity in own.items():
        holders = [rank for rank, held in enumerate(of_ranks) if held.get(name) == identity]
        if len(holders) < axis.size and holders[0] == axis.rank:
            hashed[name] = digest(name)
    all_hashed = gather_objects(hashed, axis)
    values = {}
    for name, identity in own.items():
        holders = [rank for rank, held in enumerate(of_ranks) if held.get(name) == identity]
        values[name] = "the same file" if len(holders) == axis.size else all_hashed[holders[0]][name]
    return values


def _first_change(files: Mapping[str, tuple[Path, FileIdentity]]) -> str | None:
    for path, identity in files.values():
        try:
            now = FileIdentity.of(path)
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror}); check the file"
        if now != identity:
            return f"{path}: changed after its header was read; start again when nothing writes to it"
    return None


@cache
def _host() -> str:
    """A name of this machine and its start: device numbers mean the same within it."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()

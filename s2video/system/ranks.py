"""torchrun's environment variables. They are read only here."""

import os
from pathlib import Path

from ..errors import InputError

MAX_RANKS = 1_000_000


def launched_by_torchrun() -> bool:
    """Return whether torchrun, or a program that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def belongs_to_torchrun() -> bool:
    """Return whether it was torchrun, or a program that runs torchrun's agent, and not mpirun, srun or a script."""
    return launched_by_torchrun() and "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Return RANK, this process's number among all ranks; 0 without torchrun."""
    number, count = _number("RANK", 0), world_size()
    if number >= count:
        raise InputError(
            f"RANK: expected a number below WORLD_SIZE, {count}, in the environment, got {number}; start the ranks "
            "with torchrun"
        )
    return number


def shown_rank() -> str:
    """Return RANK as it is, for a message. Never raises."""
    return os.environ.get("RANK", "0")[:40]


def world_size() -> int:
    """Return WORLD_SIZE, the number of ranks; 1 without torchrun."""
    return _number("WORLD_SIZE", 1, least=1)


def local_rank() -> int:
    """Return LOCAL_RANK, this process's number among the ranks of its host; 0 without torchrun."""
    number, count = _number("LOCAL_RANK", 0), local_world_size()
    if number >= count and "LOCAL_WORLD_SIZE" in os.environ:
        raise InputError(
            f"LOCAL_RANK: expected a number below LOCAL_WORLD_SIZE, {count}, in the environment, got {number}; start "
            "the ranks with torchrun"
        )
    return number


def local_world_size() -> int:
    """Return LOCAL_WORLD_SIZE, the number of ranks of this host; 1 without torchrun."""
    return _number("LOCAL_WORLD_SIZE", 1, least=1)


def is_main_rank() -> bool:
    """Return whether this process is rank 0, the only one that writes files."""
    return rank() == 0


def speaks_for_host() -> bool:
    """Return whether this process prints the errors that all ranks of its host have. Never raises."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) in ("0", "")


def host() -> str:
    """Return GROUP_RANK, a name that the ranks of one host share."""
    return os.environ.get("GROUP_RANK", "0")


def attempt() -> str:
    """Return TORCHELASTIC_RESTART_COUNT, how often torchrun has restarted the ranks."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def error_file() -> Path | None:
    """Return TORCHELASTIC_ERROR_FILE, where torchrun looks for the reason why this rank failed; None without one."""
    text = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    return Path(text) if text and Path(text).parent.is_dir() else None


def store_address() -> tuple[str, int]:
    """Return MASTER_ADDR and MASTER_PORT, the address of the run's store. Raise InputError if one is missing."""
    address = os.environ.get("MASTER_ADDR")
    if not address:
        raise InputError(
            "MASTER_ADDR: expected the address of rank 0's host, got nothing; start the ranks with torchrun"
        )
    return address, _number("MASTER_PORT", None, least=1, most=2**16 - 1)


def check() -> None:
    """Raise InputError unless the environment of a rank is complete, and its numbers fit each other."""
    rank()
    local_rank()
    store_address()


def _number(name: str, default: int | None, *, least: int = 0, most: int = MAX_RANKS) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    is_number = text is not None and text.isascii() and text.isdigit() and len(text) < 10
    if text is None or not is_number or not least <= int(text) <= most:
        raise InputError(
            f"{name}: expected a whole number from {least} to {most} in the environment, got "
            f"{'nothing' if text is None else repr(text[:40])}; start the ranks with torchrun"
        )
    return int(text)

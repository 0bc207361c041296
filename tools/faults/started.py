"""Processes that the faults reach: how they are started, and which of them are still alive."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_SITE = Path(__file__).resolve().parent / "site"


def environment(chaos: Path | None = None) -> dict[str, str]:
    """Return the environment of a process; with a folder, its faults are ordered there."""
    calm = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    if chaos is None:
        return calm
    return calm | {"CHAOS_FOLDER": str(chaos), "PYTHONPATH": os.pathsep.join([str(_SITE), str(REPOSITORY)])}


def orphans(chaos: Path, seconds: float = 60.0) -> list[int]:
    """Return the processes of a run that are alive so long after its end."""
    deadline = time.monotonic() + seconds
    while (found := _with_environment(f"CHAOS_FOLDER={chaos}")) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def _with_environment(entry: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if entry.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found

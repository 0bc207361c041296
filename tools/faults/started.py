"""Processes that the faults reach: how they are started, and which of them are still alive."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_SITE = Path(__file__).resolve().parent / "site"


def environment(chaos: Path | None = None, *, step_times: Path | None = None) -> dict[str, str]:
    """Return the environment of a process.

    Args:
        chaos: a folder, where faults of the process are ordered.
        step_times: a file for the times of a server's steps.
    """
    calm = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    files = {"CHAOS_FOLDER": chaos, "STEP_TIMES": step_times}
    hooked = {name: str(path) for name, path in files.items() if path is not None}
    if hooked:
        hooked["PYTHONPATH"] = os.pathsep.join([str(_SITE), str(REPOSITORY)])
    return calm | hooked


def start(command: Sequence[str], said: Path, chaos: Path | None) -> subprocess.Popen[bytes]:
    """Start the process that has all others; it appends to the file `said`. With `chaos`, faults can find it."""
    with said.open("ab") as file:
        process = subprocess.Popen(command, env=environment(chaos), stdout=file, stderr=file)
    if chaos is not None:
        (chaos / "supervisor.pid").write_text(str(process.pid))
    return process


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

"""Signs that a rank waits for others, has lost one, or is stopped. Knows no store and no rules."""

import os
import sys
import threading
from pathlib import Path

import torch.distributed as dist

from ..errors import S2VideoError
from ..system.processes import look
from ..system.roster import Entry

_PACKAGE = str(Path(__file__).parent)
_COLLECTIVES = (
    f"{Path(dist.__file__).parent}{os.sep}",
    *(f"{_PACKAGE}{os.sep}{name}.py" for name in ("collectives", "halo", "ring", "lead", "watch", "mesh", "weights")),
)


def shows_a_lost_rank(error: BaseException) -> bool:
    """Return whether a collective failed. gloo raises plain RuntimeErrors that name one of its source files."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def first_line(error: BaseException) -> str:
    """Return an error as one line."""
    text = str(error).strip().splitlines()
    line = " ".join(text[0].split())[:300] if text else ""
    return line if isinstance(error, S2VideoError) else f"{type(error).__name__}: {line}".removesuffix(": ")


def main_thread() -> tuple[bool, str]:
    """Return whether the main thread waits for other ranks, and where it is, such as "loading.py:70"."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code.co_filename == threading.__file__:
        frame = frame.f_back
    if frame is None:
        return False, ""
    file = frame.f_code.co_filename
    waits = file.startswith(_COLLECTIVES) or f"{os.sep}deepspeed{os.sep}" in file
    return waits, f"{Path(file).name}:{frame.f_lineno}"


def is_stopped(entry: Entry) -> bool:
    """Return whether the process of a rank of this host exists and is stopped."""
    found = look(entry.pid) if entry.is_alive else None
    return found is not None and found.is_stopped

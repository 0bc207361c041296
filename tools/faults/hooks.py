"""Places in the processes of a batch at which an order is carried out; installed by site/sitecustomize.py alone.

The package itself knows nothing of this: functions are wrapped when their modules are imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from . import orders
from .orders import Order

BALLAST = "ballast"

_folder = Path()
_passed: dict[tuple[int, str], int] = {}


def install(folder: Path) -> None:
    """Wrap the places, and the clock, in this process."""
    global _folder
    _folder = folder
    sys.meta_path.insert(0, _Patcher(_PATCHES))
    real_time = time.time
    time.time = lambda: real_time() + _offset()
    rename = os.replace

    @wraps(rename)
    def replace(source: Any, target: Any, **more: Any) -> None:
        if str(target).endswith((".mp4", ".json")) and not str(target).startswith(str(folder)):
            reach("renaming")
        rename(source, target, **more)

    os.replace = replace


def record_steps(file: Path) -> None:
    """Append a line for each step of a server's jobs: job, step, seconds of the clock, CPU seconds of the process."""

    def patch(module: ModuleType) -> None:
        original = module.JobQueue.step_done

        @wraps(original)
        def step_done(self: Any, name: str, step: int, steps: int) -> bool:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{name} {step} {time.monotonic()} {time.process_time()}\n")
            return bool(original(self, name, step, steps))

        module.JobQueue.step_done = step_done

    sys.meta_path.insert(0, _Patcher({"s2video.server.queue": patch}))


def reach(phase: str, encoder: subprocess.Popen[bytes] | None = None) -> None:
    """Carry out the waiting order if it is for this place and this process."""
    order = orders.waiting(_folder)
    if order is None or order.phase != phase or order.rank != int(os.environ.get("RANK", "0")):
        return
    _passed[order.number, phase] = _passed.get((order.number, phase), 0) + 1
    if _passed[order.number, phase] > order.skip and orders.take(order, _folder):
        orders.log(_folder, event="fault", pid=os.getpid(), phase=phase, victim=order.victim, number=order.number)
        if order.delay == 0:
            _carry_out(order, encoder)
        else:
            threading.Timer(order.delay, _carry_out, (order, encoder)).start()


def _carry_out(order: Order, encoder: subprocess.Popen[bytes] | None) -> None:
    supervisor = int((_folder / "supervisor.pid").read_text())
    if order.victim == "clock":
        (_folder / "offset").write_text(str(_offset() + order.jump))
    elif order.victim == "disk":
        _fill_disk()
    elif order.victim == "term":
        _kill(supervisor, signal.SIGTERM)
    elif order.victim == "supervisor":
        _kill(supervisor)
    elif order.victim == "encoder":
        assert encoder is not None, "only there while encoding"
        _kill(encoder.pid)
    else:
        parent = os.getppid()
        if order.victim == "replica" and parent != supervisor:  # torchrun, and the other ranks
            _kill(parent)
            for pid in children(parent):
                if pid != os.getpid():
                    _kill(pid)
        _kill(os.getpid())


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children(parent: int) -> Iterator[int]:
    """Yield the processes that a process has started."""
    for entry in list(Path("/proc").iterdir()):
        with suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(entry.name)


def _fill_disk() -> None:
    """Fill the file system of the batch's folder; the driver removes the file."""
    path = Path((_folder / "disk").read_text()) / BALLAST
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 64)


def _offset() -> float:
    try:
        return float((_folder / "offset").read_text())
    except (OSError, ValueError):
        return 0.0


def _before(owner: Any, name: str, phase: str) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*arguments: Any, **more: Any) -> Any:
        encoder = getattr(arguments[0], "_process", None) if phase == "encoding" else None
        reach(phase, encoder)
        return original(*arguments, **more)

    setattr(owner, name, wrapped)


def _before_first_chunk(engine: Any) -> None:
    original = engine.decode

    @wraps(original)
    def decode(*arguments: Any, **more: Any) -> Iterator[Any]:
        reach("decoding")
        yield from original(*arguments, **more)

    engine.decode = decode


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "s2video.engine.engine": lambda module: (
        _before(module.Engine, "__init__", "loading"),
        _before_first_chunk(module.Engine),
    )[0],
    "s2video.records.resume": lambda module: _before(module.ResumePoint, "step_done", "denoising"),
    "s2video.media.ffmpeg": lambda module: _before(module.Ffmpeg, "send", "encoding"),
}


class _Patcher(importlib.abc.MetaPathFinder):
    def __init__(self, patches: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._patches = patches
        self._is_looking = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self._patches or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_looking = False
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self._patches[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

"""One input for one target, and what it led to. A finding is anything but a result or an InputError in one line."""

import contextlib
import faulthandler
import re
import resource
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fuzzing.mutations import Mutate
from s2video.errors import InputError

MAX_SECONDS = 20.0  # of work for one input
MAX_BYTES = 1 << 30  # that the process may grow by


class Finding(Exception):
    """Something that should not be: the message says what."""


@dataclass(frozen=True)
class Target:
    """A boundary where bytes from outside become objects.

    Attributes:
        seeds: good inputs, or almost good ones.
        run: takes an input and an empty folder. Returns, or raises InputError for an input that cannot be used.
        mutate: how inputs are changed.
        cost: about how many milliseconds an input takes; dearer targets get fewer.
    """

    name: str
    seeds: Sequence[bytes]
    run: Callable[[bytes, Path], Any]
    mutate: Mutate = field(repr=False)
    cost: float = 2.0


@dataclass(frozen=True)
class Outcome:
    """What an input led to.

    Attributes:
        kind: "accepted", "refused", or that of a finding: "crash", "slow", "memory", "message".
        signature: equal for inputs that led to the same place in the code, as far as the message tells.
        detail: of a finding, for people.
    """

    kind: str
    signature: str
    detail: str = ""

    @property
    def is_finding(self) -> bool:
        return self.kind not in ("accepted", "refused")


def try_input(target: Target, data: bytes, folder: Path, *, stuck: IO[str] | None = None) -> Outcome:
    """Run a target on an input.

    Args:
        folder: empty; the target may write there.
        stuck: where the stack is written before the process is ended, if the input takes ten times `MAX_SECONDS` by the
            clock. None: it is not ended.
    """
    before, start = peak(), _cpu_seconds()
    if stuck is not None:
        faulthandler.dump_traceback_later(10 * MAX_SECONDS, exit=True, file=stuck)
    try:
        result = target.run(data, folder)
        outcome = Outcome("accepted", f"accepted {type(result).__name__}")
    except InputError as error:
        outcome = _refused(error)
    except Finding as error:
        outcome = Outcome("message", _shape(str(error)), str(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # PanicException of Rust is no Exception
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
        outcome = Outcome(
            "crash", f"{type(error).__name__} {where}", "".join(traceback.format_exception(error))[-8000:]
        )
    finally:
        if stuck is not None:
            faulthandler.cancel_dump_traceback_later()
    seconds, grown = _cpu_seconds() - start, peak() - before
    if not outcome.is_finding and seconds > MAX_SECONDS:
        return Outcome("slow", f"slow {outcome.signature[:60]}", f"{seconds:.1f} s; {outcome.signature}")
    if not outcome.is_finding and grown > MAX_BYTES:
        return Outcome("memory", f"memory {outcome.signature[:60]}", f"{grown >> 20} MiB; {outcome.signature}")
    return outcome


def _cpu_seconds() -> float:
    """Return the time that this process and those that it started have worked; others do not slow it down."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak() -> int:
    """Return the largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def limited_memory(more: int = 8 << 30) -> Any:
    """Let allocations fail that would need `more` bytes of addresses than this process has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _refused(error: InputError) -> Outcome:
    text = str(error)
    if "\n" in text.strip() and text.count("\n") > 3:
        return Outcome("message", f"lines {_shape(text)}", f"{text.count(chr(10))} lines: {text[:2000]}")
    return Outcome("refused", _shape(text))


def _shape(text: str) -> str:
    """Return a message without what the input put into it."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'", text)
    text = re.sub(r"/\S*", "/", text)
    return re.sub(r"\d+", "0", text)[:120]


def clean(folder: Path) -> None:
    """Remove what a target has written."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)

"""Text from outside on a terminal: control characters become visible escapes.

Paths, prompts, and everything in a data file can hold escape sequences, which clear the screen, change the window's
title or hide what stands before them. Everything that is printed goes through this module.
"""

import atexit
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

logging.getLogger("s2video").addHandler(logging.NullHandler())  # prints nothing unless a program asks for it

# C0, DEL, C1, line separators, bidirectional overrides, and surrogates, which no terminal can show.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_LINE = 3000  # characters of a line about an input, which it can hold whole
_CONTROL_IN_LINES = re.compile(f"(?!\n){_CONTROL.pattern}")


def printable(text: object) -> str:
    r"""Return text on one line whose control characters are escapes.

    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return _CONTROL.sub(_escape, str(text))


def printable_lines(text: object) -> str:
    """Return text of several lines, as `printable` does for each of them."""
    return _CONTROL_IN_LINES.sub(_escape, str(text))


def printable_json(text: str) -> str:
    """Return the same JSON document without raw control characters: as escapes in its strings, as spaces elsewhere."""
    return _CONTROL_IN_LINES.sub(lambda found: " " if found[0] in "\t\r" else f"\\u{ord(found[0]):04x}", text)


def prepare_streams() -> None:
    """Make the standard streams safe to write to. Call this first in a process.

    A stream that was closed before the start is opened on /dev/null; otherwise the next file that is opened gets its
    number, and what libraries print goes into that file. What an encoding cannot hold is printed as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    _lost.clear()
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    atexit.unregister(_drop_unprinted)
    atexit.register(_drop_unprinted)


def lost_output() -> OSError | None:
    """Return the error after which nothing was printed on standard output; None if all was."""
    return _lost[0] if _lost else None


def flush_output() -> None:
    """Print what other code has written to standard output."""
    _write_output("")


def say(text: object) -> None:
    """Print a line for the user on standard error; one of more than `MAX_LINE` characters is cut.

    If standard error is closed or full, there is no place to say so.
    """
    line = printable(text)
    cut = "" if len(line) <= MAX_LINE else f"… ({len(line)} characters)"
    say_plain(f"s2video: {line[:MAX_LINE]}{cut}")


def say_plain(line: str) -> None:
    """Print a line on standard error as it is, and otherwise as `say`. The logger `s2video` gets it too."""
    is_error = line.startswith("s2video: error: ")
    logging.getLogger("s2video").log(logging.ERROR if is_error else logging.INFO, line.removeprefix("s2video: "))
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def say_error(text: object) -> None:
    """Print an error on standard error, as one line."""
    say(f"error: {' '.join(str(text).split())}")


def show(text: object) -> None:
    """Print an answer for people, of one or several lines, on standard output.

    If standard output is closed or full, nothing more is printed there, and `lost_output` returns the error: what is
    left to do counts more than what is printed.
    """
    _write_output(f"{printable_lines(text)}\n")


def show_json(text: str) -> None:
    """Print a JSON document on standard output, as `show` does."""
    _write_output(f"{printable_json(text).rstrip()}\n")


def show_path(path: object) -> None:
    """Print the path of a file that was made: exactly as it is for another program, printable on a terminal."""
    _write_output(f"{printable(path) if sys.stdout.isatty() else path}\n")


@contextmanager
def output_on_errors() -> Iterator[None]:
    """Let what is printed on standard output, also by processes that are started, go to standard error meanwhile."""
    flush_output()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        flush_output()
        os.dup2(kept, 1)
        os.close(kept)


_lost: list[OSError] = []


def _write_output(text: str) -> None:
    if _lost:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _lost.append(error if isinstance(error, OSError) else OSError(errno.EBADF, "it is closed"))
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            say(f"nothing more is printed on standard output ({_lost[0].strerror}); the work continues")


def _drop_unprinted() -> None:
    """Discard what standard error cannot take; Python would try again at its end, and make the exit code 120 of it."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what is left in a stream's buffer, and all that follows, go to /dev/null."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")

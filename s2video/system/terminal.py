"""Text from outside on a terminal: control characters become visible escapes.

Paths, prompts, and everything in a data file can hold escape sequences, which clear the screen, change the window's
title or hide what stands before them. Everything that is printed goes through this module.
"""

import re
import sys

# C0, DEL, C1, line separators, bidirectional overrides, and surrogates, which no terminal can show.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
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


def say(text: object) -> None:
    """Print a line for the user on standard error."""
    print(f"s2video: {printable(text)}", file=sys.stderr, flush=True)


def say_error(text: object) -> None:
    """Print an error on standard error, as one line."""
    say(f"error: {' '.join(str(text).split())}")


def show(text: object) -> None:
    """Print an answer for people, of one or several lines, on standard output."""
    print(printable_lines(text), flush=True)


def show_path(path: object) -> None:
    """Print the path of a file that was made: exactly as it is for another program, printable on a terminal."""
    print(printable(path) if sys.stdout.isatty() else path, flush=True)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")

"""JSON from outside: read within bounds on bytes, depth and digits; every failure is one InputError.

Python's own reader raises RecursionError for deep nesting, takes numbers of thousands of digits, and reads files of any
size. Every JSON file and every JSON header of a data file is read here.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError

MAX_BYTES = 32 * 2**20
MAX_DEPTH = 50
MAX_DIGITS = 300  # of a whole number: longer ones do not fit a float


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, remedy: str = "check the file") -> Any:
    """Return what a JSON file holds.

    Args:
        remedy: what to do about a file that cannot be used, for the message.

    Raises:
        InputError: a file that cannot be read, is too large, or is not JSON within the bounds.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected JSON, but the file cannot be read ({reason}); {remedy}") from None
    return parse_json(content, str(path), max_bytes=max_bytes, remedy=remedy)


def parse_json(
    content: str | bytes,
    source: str,
    *,
    max_bytes: int = MAX_BYTES,
    remedy: str = "check the file",
    refuse_repeated_keys: bool = False,
) -> Any:
    """Return what a JSON text holds; `source` names it in the message. Raises InputError as `read_json` does."""
    if len(content) > max_bytes:
        raise InputError(f"{source}: expected at most {max_bytes} bytes of JSON, got more; {remedy}")
    pairs = _without_repetition if refuse_repeated_keys else None
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, parse_int=_whole, object_pairs_hook=pairs)
    except RecursionError:
        raise InputError(f"{source}: expected JSON of at most {MAX_DEPTH} levels, got more; {remedy}") from None
    except ValueError as error:  # also of bytes that are not UTF-8
        raise InputError(f"{source}: expected JSON, but it cannot be read ({error}); {remedy}") from None
    if _is_deep(value):
        raise InputError(f"{source}: expected JSON of at most {MAX_DEPTH} levels, got more; {remedy}")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [child for parent in level for child in _children(parent)]
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _children(parent: Any) -> Any:
    return parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ()


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice: keep one")
    return values

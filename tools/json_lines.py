"""Result files in JSON Lines: a header on the first line, then one record a line.

Names end in `.jsonl`, or in `.jsonl.gz` for compressed files. The bytes depend on the contents only: no time is stored.
"""

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from s2video.errors import InputError
from s2video.system.files import atomic_path

SUFFIXES = (".jsonl", ".jsonl.gz")


def lines_path(text: str) -> Path:
    """Return the path of a command-line argument, for argparse's `type`."""
    if not text.endswith(SUFFIXES):
        raise argparse.ArgumentTypeError(f"expected a name that ends in {' or '.join(SUFFIXES)}, got {text!r}")
    return Path(text)


def write_lines(path: Path, header: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    """Write a result file, whole or not at all.

    Raises:
        InputError: if the file cannot be created.
        ValueError: if there is a NaN or an infinity, which JSON cannot hold.
    """
    lines = (json.dumps(line, ensure_ascii=False, allow_nan=False) for line in (header, *records))
    content = "".join(f"{line}\n" for line in lines).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a result file into its header and its records.

    Raises:
        InputError: if there is no such file, or it is not of this form.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        header, *records = (json.loads(line) for line in content.splitlines())
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: expected a result file in JSON Lines, got: {error}") from None
    return header, records

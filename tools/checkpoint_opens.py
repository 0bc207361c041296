"""Counts how often one `s2video.load("shapes-wan")` opens each file of the checkpoint.

    python tools/checkpoint_opens.py
    python tools/checkpoint_opens.py --who      and who opened it: the nearest function of the package

Python says of each `open` that it comes; safetensors' `safe_open`, which opens in Rust, is wrapped. Files that other
compiled code opens, such as that of tokenizers, are not seen.
"""

import argparse
import atexit
import os
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import safetensors

import s2video

PACKAGE = Path(s2video.__file__).parent
CHECKPOINT = next(PACKAGE.rglob("shapes-wan"))
_opened: Counter[tuple[str, str]] = Counter()  # by file and function
_counts = False


def note(path: Any) -> None:
    """Count one opening, where it is of the checkpoint."""
    if not _counts or not isinstance(path, (str, os.PathLike)):
        return
    file = Path(os.path.realpath(path))
    if file.is_relative_to(CHECKPOINT):
        _opened[str(file.relative_to(CHECKPOINT)), _opener()] += 1


def _opener() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            return f"{module}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "another thread"


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        note(arguments[0])


def _wrap_safe_open() -> None:
    """Before anything imports it by name."""
    real = safetensors.safe_open

    def safe_open(filename: Any, *arguments: Any, **others: Any) -> Any:
        note(filename)
        return real(filename, *arguments, **others)

    safetensors.safe_open = safe_open


def _report(who: bool) -> None:
    files = Counter[str]()
    for (file, _), count in _opened.items():
        files[file] += count
    for file, count in sorted(files.items()):
        print(f"{count:4}  {file}")
        for (other, opener), part in sorted(_opened.items()):
            if who and other == file:
                print(f"      {part:4}  {opener}")
    print(f"{sum(files.values()):4}  in all")


def main() -> int:
    """Load the model once; what was opened is printed at the end, when threads that still read have ended too."""
    global _counts
    parser = argparse.ArgumentParser(description="Files of a checkpoint opened by one load.", allow_abbrev=False)
    parser.add_argument("--who", action="store_true", help="say too which function opened each")
    arguments = parser.parse_args()
    _wrap_safe_open()
    load = s2video.load
    sys.addaudithook(_hook)
    atexit.register(_report, arguments.who)
    _counts = True
    load("shapes-wan", **{"model.device": "cpu"})
    return 0


if __name__ == "__main__":
    sys.exit(main())

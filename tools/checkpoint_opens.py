"""Count how often one `s2video.load("shapes-wan")` opens each file of the checkpoint.

    python tools/checkpoint_opens.py
    python tools/checkpoint_opens.py --who      # also the nearest function of the package that opened it

Python reports each `open` to an audit hook; safetensors' `safe_open`, which opens files in Rust, is wrapped. Files that
other compiled code opens, such as that of tokenizers, are not counted.
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

PACKAGE = Path(s2video.__file__).resolve().parent
CHECKPOINT = PACKAGE / "assets" / "shapes-wan"


class Openings:
    """Counts the openings of the checkpoint's files, by file and by the function that opens it."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def watch(self) -> None:
        """Count from now on. Call it before any module imports `safe_open` by name."""
        real = safetensors.safe_open

        def safe_open(filename: Any, *arguments: Any, **others: Any) -> Any:
            self.note(filename)
            return real(filename, *arguments, **others)

        safetensors.safe_open = safe_open
        sys.addaudithook(lambda event, arguments: self.note(arguments[0]) if event == "open" else None)

    def note(self, path: Any) -> None:
        if not isinstance(path, str | os.PathLike):
            return
        file = Path(os.path.realpath(path))
        if file.is_relative_to(CHECKPOINT):
            self.counts[str(file.relative_to(CHECKPOINT)), _opener()] += 1

    def report(self, who: bool) -> None:
        """Print a line for each file and, if `who`, for each function."""
        files = Counter[str]()
        for (file, _), count in self.counts.items():
            files[file] += count
        for file, count in sorted(files.items()):
            print(f"{count:4}  {file}")
            for (other, opener), part in sorted(self.counts.items()):
                if who and other == file:
                    print(f"      {part:4}  {opener}")
        print(f"{sum(files.values()):4}  in all")


def _opener() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            return f"{module}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "another thread"


def main() -> int:
    """Load the model once. The counts are printed at exit, when threads that still read have ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--who", action="store_true", help="also print which function opened each file")
    arguments = parser.parse_args()
    openings = Openings()
    openings.watch()
    atexit.register(openings.report, arguments.who)
    s2video.load("shapes-wan", **{"model.device": "cpu"})
    return 0


if __name__ == "__main__":
    sys.exit(main())

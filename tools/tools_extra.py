"""Imports that need the extra `tools`, which the package itself does not install."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXTRA = ("matplotlib", "scipy")


@contextmanager
def tools_extra() -> Iterator[None]:
    """Around imports: end the program with one line and exit code 2 if a package of the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        print(
            f"{Path(sys.argv[0]).stem}: error: {missing} is not installed. Install the extra `tools`: "
            "pip install -c constraints.txt -e '.[tools]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None

"""What the tests of the edit share: a batch that can be started again."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class EditRun(NamedTuple):
    """A run file, its folder, and what makes it in this process."""

    file: Path
    folder: Path
    batch: Callable[..., int]

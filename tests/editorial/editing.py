"""What the tests of the edit share: a batch that can be started again, and single tiny videos."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tiny import MAX_SEQUENCE_LENGTH

from s2video.cli.main import main

SETTINGS = ["sampling.width=32", "sampling.height=32", "sampling.num_frames=5", "sampling.num_inference_steps=2"]
SETTINGS += [f"sampling.max_sequence_length={MAX_SEQUENCE_LENGTH}", "model.device=cpu", "guidance.drop_ratio=0.3"]


class EditRun(NamedTuple):
    """A run file, its folder, and what makes it in this process."""

    file: Path
    folder: Path
    batch: Callable[..., int]


def generate(checkpoint: Path, output: Path, *more: str) -> int:
    """Make a tiny video on the command line, and return the exit code."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    paths = ["--model", str(checkpoint), "--output", str(output)]
    return main(["generate", *paths, "--prompt", "a red wall", "--plain", *settings, *more])

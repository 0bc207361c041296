"""A batch with versions, made once: three shots of tiny videos at 24000/1001, and another version of one of them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsers import browser, chromium  # noqa: F401
from editing import EditRun
from tiny import MAX_SEQUENCE_LENGTH

from s2video.cli.main import main

SHOTS: list[Any] = [
    {"shot": "sh010", "prompt": "a red wall"},
    {"shot": "sh020", "prompt": "a blue wall, and a door", "sampling.num_frames": 9},
    {"shot": "sh030", "prompt": "a green wall"},
]


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[EditRun]:
    """Shared by all tests, so none may change it."""
    root = tmp_path_factory.mktemp("edit")
    file = root / "run.yaml"
    values = {
        "model": {"path": str(tiny_checkpoint), "device": "cpu"},
        "sampling": {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 2}
        | {"max_sequence_length": MAX_SEQUENCE_LENGTH},
        "guidance": {"drop_ratio": 0.3},
        "output": {"fps": "24000/1001", "timecode": "01:00:00:00"},
        "folder": str(root / "out"),
        "shots": SHOTS,
    }
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    run = EditRun(file, root / "out", _maker(file))
    assert run.batch() == 0
    assert run.batch("--version", "2", "--only", "sh020", "--set", "guidance.s2_scale=0.5") == 0
    yield run


def _maker(file: Path) -> Callable[..., int]:
    def make(*arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:  # as the one rank of a torchrun would
            patch.setattr("s2video.cli.batch._is_rank", lambda: True)
            return main(["batch", str(file), "--plain", *arguments])

    return make


@pytest.fixture
def edit_run(made_run: EditRun, tmp_path: Path) -> EditRun:
    """A copy of it, at another place, with its own run file."""
    folder, file = tmp_path / "out", tmp_path / "run.yaml"
    shutil.copytree(made_run.folder, folder)
    values = yaml.safe_load(made_run.file.read_text(encoding="utf-8")) | {"folder": str(folder)}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return EditRun(file, folder, _maker(file))

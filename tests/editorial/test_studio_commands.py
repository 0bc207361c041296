"""Every command of docs/studio.md, one after the other in one folder, as a reader gives them; with one step each.

The one for two ranks is only checked, up to the start of torchrun: tests/distributed/test_reproduce_on_ranks.py and
tests/e2e/test_multinode.py run what it starts.
"""

from pathlib import Path

import pytest
from doc_commands import ROOT, commands
from fuzzing.certificates import write_signer

from s2video.cli.main import main
from s2video.system.launcher import LaunchPlan

STEPS = ("--set", "sampling.num_inference_steps=1")  # for those that denoise
WRITERS = ("generate", "decode", "timeline", "copies", "compare", "sheet", "page")
PAIR = ("triangle_s2_scale-0_v001_s0.mp4", "triangle_s2_scale-0.25_v001_s0.mp4")
NOT_HERE = ["sbatch"]  # marked with what they need


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands read; links stand for the names that a reader replaces."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "RUN").symlink_to("runs/batch-shapes")
    for name, video in zip("AB", PAIR, strict=True):
        (tmp_path / f"{name}.mp4").symlink_to(f"RUN/{video}")
    write_signer(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("s2video.cli.batch._is_rank", lambda: True)  # the only replica runs in this process
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of ranks that torchrun would have been asked to start."""
    found: list[list[str]] = []

    def launch(plan: LaunchPlan, arguments: list[str]) -> int:
        assert plan.nproc == 2
        found.append(arguments)
        return 0

    monkeypatch.setattr("s2video.cli.generate.launch", launch)
    return found


def test_every_command_of_the_page_runs(
    place: Path, started: list[list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    # README.md has made this one
    assert main(["generate", "--model", "shapes-wan", "--prompt", "a circle", "--output", "runs/mine.mp4", *STEPS]) == 0
    capfd.readouterr()
    left = []
    for command in commands():
        program, *words = command.words
        if command.document != "docs/studio.md":
            continue
        if program != "s2video":
            assert command.is_marked
            left.append(program)
            continue
        code = main([*words, *(STEPS if words[0] in ("generate", "batch") else ())])
        said = capfd.readouterr()
        assert code == 0, f"{' '.join(words)}: {said.err}"
        if words[0] in WRITERS:
            paths = [Path(line) for line in said.out.splitlines()]
            assert paths and all(path.exists() for path in paths), f"{' '.join(words)}: {said.out}"
    assert left == NOT_HERE and started == [["reproduce", "runs/mine.mp4"]]
    assert main(["status", "RUN", "--exit-code"]) == 0

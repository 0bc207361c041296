"""Standard output and standard error that are closed, full, or of another encoding: the work is done all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2video.system.progress import Progress
from s2video.system.terminal import prepare_streams, show

# `generate` of three videos that are made at once. The first file that is opened gets the lowest free number.
PLAYED = """
import os, sys
from s2video.cli import generate, main
from s2video.system.progress import Progress
from s2video.system.terminal import say, show_path

def play(arguments):
    for number in range(3):
        with open(f"日本-{number}.mp4", "w") as file:
            if file.fileno() <= 2:
                os.write(1, b"a library prints into the video")
            say(f"{number} of 3")
            progress = Progress("denoising", "plain")
            progress(1, 1)
            file.write("made")
        show_path(f"日本-{number}.mp4")
    return 0

generate._generate = play
sys.exit(main.main(["generate"]))
"""


def play(folder: Path, shell: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = shell.replace("PLAY", f'"{sys.executable}" -c "$PLAYED"')
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        # buffered as by default, whatever this process has
        env={**os.environ, "PLAYED": PLAYED, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "", **environment},
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("shell", "code", "encoding"),
    [
        ("PLAY", 0, "utf-8"),
        ("PLAY", 0, "ascii"),
        ("PLAY 2>&1 | true; exit ${PIPESTATUS[0]}", 141, "utf-8"),
        ("PLAY | true; exit ${PIPESTATUS[0]}", 141, "utf-8"),
        ("PLAY > /dev/full", 1, "utf-8"),
        ("PLAY > /dev/full 2> /dev/full", 1, "utf-8"),
        ("PLAY >&-", 0, "utf-8"),
        ("PLAY 2>&-", 0, "utf-8"),
        ("PLAY 2> /dev/full", 0, "utf-8"),
        ("PLAY <&- >&- 2>&-", 0, "utf-8"),
    ],
)
def test_all_videos_are_made(tmp_path: Path, shell: str, code: int, encoding: str) -> None:
    done = play(tmp_path, shell, PYTHONIOENCODING=encoding)
    assert done.returncode == code, done.stderr.decode()
    assert [(tmp_path / f"日本-{number}.mp4").read_text() for number in range(3)] == ["made"] * 3
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    if shell == "PLAY":
        name = "日本" if encoding == "utf-8" else r"\u65e5\u672c"
        assert done.stdout.decode().split() == [f"{name}-{number}.mp4" for number in range(3)]
    if shell == "PLAY > /dev/full":
        said = b"nothing more is printed on standard output (No space left on device); the work continues"
        assert done.stderr.count(said) == 1


def test_other_output_that_cannot_be_encoded_or_written(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for words in (["--help"], ["inspect", "--schema"]):
        command = [sys.executable, "-m", "s2video", *words]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout.isascii()
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1


def test_a_bar_on_a_terminal_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        encoding = "utf-8"

        def write(self, text: str) -> None:
            raise OSError(5, "Input/output error")

        flush = isatty = lambda self: self.write("")

    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress("denoising", "bar") as progress:
        for step in range(1, 4):
            progress(step, 3)


def test_output_is_printed_again_by_the_next_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "write", lambda text: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        show("lost")
    show("lost, too")
    prepare_streams()
    show("printed")
    assert capsys.readouterr().out == "printed\n"

"""Tests of videos that cannot be written: the error states why, and no file or process is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from torch import Tensor
from video_helpers import RED, SPEC, noise, solid

from s2video.errors import InputError, NumericalError, S2VideoError
from s2video.media import ffmpeg as ffmpeg_module
from s2video.media.video import VideoSpec, write_video
from s2video.review.captions import Caption
from s2video.review.compare import compare_videos
from s2video.system.processes import look


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """Collect every process that is started."""
    processes: list[subprocess.Popen] = []
    start = subprocess.Popen.__init__

    def remember(process: subprocess.Popen, *args: object, **kwargs: object) -> None:
        start(process, *args, **kwargs)
        processes.append(process)

    monkeypatch.setattr(subprocess.Popen, "__init__", remember)
    return processes


@pytest.fixture
def fake_ffmpeg(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace ffmpeg by a shell script; $real in it is the real one, $last the output file."""

    def install(script: str) -> None:
        real = imageio_ffmpeg.get_ffmpeg_exe()
        path = tmp_path_factory.mktemp("bin") / "ffmpeg"
        path.write_text(f"#!/bin/sh\nreal='{real}'\nfor last; do :; done\nlast=${{last#file:}}\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))

    return install


def then(error: BaseException) -> Iterator[Tensor]:
    yield from noise(5)
    raise error


def without_picture(value: float) -> Iterator[Tensor]:
    yield from noise(3)
    chunk = torch.cat(list(noise(4)))
    chunk[2, 5, 7, 1] = value
    yield chunk


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (lambda: then(RuntimeError("decoder broke")), RuntimeError, "decoder broke"),
        (lambda: then(BrokenPipeError("another pipe")), BrokenPipeError, "another pipe"),
        (lambda: then(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
        (lambda: then(SystemExit(143)), SystemExit, "143"),
        (lambda: without_picture(float("nan")), NumericalError, "frame 5 has NaN"),
        (lambda: without_picture(float("-inf")), NumericalError, "frame 5 has NaN"),
        (lambda: [*noise(3), *noise(1, height=50)], InputError, "frame 3: expected 80x48 px .* got 80x50 px"),
        (lambda: [*noise(3), solid(RED)[0]], InputError, r"got torch.float32 \[64, 64, 3\] after 3 frames"),
        (lambda: [*noise(3), "frame"], InputError, "got str after 3 frames"),
        (lambda: [solid(RED).double()], InputError, r"got torch.float64 \[1, 64, 64, 3\]"),
        (lambda: [torch.zeros(1, 64, 64, 4)], InputError, r"\[1, 64, 64, 4\]"),
        (lambda: noise(3, width=47), InputError, "even width .* got 47x48"),
        (lambda: noise(3, height=31), InputError, "even width .* got 80x31"),
        (lambda: noise(3, height=0), InputError, "got 80x0"),
        (lambda: [], InputError, "at least one frame"),
        (lambda: [torch.zeros(0, 64, 64, 3)], InputError, "at least one frame"),
    ],
)
def test_bad_frames_leave_nothing(
    tmp_path: Path,
    started: list[subprocess.Popen],
    frames: Callable[[], Iterable[Tensor]],
    error: type[BaseException],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        write_video(frames(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []
    assert all(process.returncode is not None for process in started)


def test_an_interrupt_in_the_midst_leaves_the_old_file(
    tmp_path: Path, started: list[subprocess.Popen], request: pytest.FixtureRequest
) -> None:
    def producer() -> Iterator[Tensor]:
        yield from noise(3)
        signal.raise_signal(signal.SIGINT)
        yield from noise(3)

    (tmp_path / "clip.mp4").write_bytes(b"old")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it for background jobs
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):
        write_video(producer(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert (tmp_path / "clip.mp4").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["clip.mp4"]
    assert started[-1].returncode == -signal.SIGKILL


@pytest.mark.parametrize("num_frames_after", [0, 200])
def test_ffmpeg_killed_from_outside(tmp_path: Path, started: list[subprocess.Popen], num_frames_after: int) -> None:
    def producer() -> Iterator[Tensor]:
        yield from noise(3)
        os.kill(started[-1].pid, signal.SIGKILL)
        yield from noise(num_frames_after)

    with pytest.raises(S2VideoError, match="ffmpeg ended with status -9"):
        write_video(producer(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo first >&2; echo 'Unknown encoder libx264' >&2; exit 8", "status 8: first\nUnknown encoder libx264"),
        ("exit 3", "status 3: it gave no reason"),
        ("cat > /dev/null; exit 0", "succeeded but wrote no video"),
        # Writes fail as on a full disk: no file may grow beyond a few KiB, and the signal for that is ignored.
        ('trap \'\' XFSZ; ulimit -f 8; exec "$real" "$@"', "File too large"),
    ],
)
def test_ffmpeg_that_fails(
    tmp_path: Path,
    started: list[subprocess.Popen],
    fake_ffmpeg: Callable[[str], None],
    script: str,
    message: str,
) -> None:
    fake_ffmpeg(script)
    with pytest.raises(S2VideoError, match=message):
        write_video(noise(60), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []
    assert all(process.returncode is not None for process in started)


def test_an_ffmpeg_that_does_nothing_is_ended(
    tmp_path: Path, started: list[subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write into its pipe would never return."""
    monkeypatch.setattr(ffmpeg_module, "_STALL", 2.0)

    def producer() -> Iterator[Tensor]:
        yield from noise(3)
        os.kill(started[-1].pid, signal.SIGSTOP)
        yield from noise(200)

    with pytest.raises(S2VideoError, match="ffmpeg did nothing for 2 s, as if it was stopped, and was ended"):
        write_video(producer(), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []


def test_an_ffmpeg_that_waits_for_frames_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg_module, "_STALL", 3.0)

    def producer() -> Iterator[Tensor]:
        yield from noise(3)
        time.sleep(5)
        yield from noise(3)

    assert write_video(producer(), tmp_path / "clip.mp4", SPEC, metadata={}).num_frames == 6


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_an_encoder_ends_with_the_process_that_feeds_it(tmp_path: Path, number: signal.Signals) -> None:
    """Also one that reads its input to the end first, or is stopped."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    program.chmod(0o755)
    code = (
        "import sys, numpy; from s2video.media.ffmpeg import Ffmpeg\n"
        "with Ffmpeg([]) as ffmpeg:\n    ffmpeg.send(numpy.zeros(10**8, dtype=numpy.uint8))"
    )
    environment = {**os.environ, "IMAGEIO_FFMPEG_EXE": str(program), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    encoder = int((tmp_path / "pid").read_text())
    process.send_signal(number)
    process.wait(60)
    while (found := look(encoder)) is not None and found.state != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_with_fewer_frames_is_not_accepted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, fake_ffmpeg: Callable[[str], None]
) -> None:
    short = tmp_path_factory.mktemp("other") / "short.mp4"
    write_video(noise(2), short, SPEC, metadata={})
    fake_ffmpeg(f"cat > /dev/null; cp '{short}' \"$last\"")
    with pytest.raises(S2VideoError, match=r"wrote 2 frames .* expected 3"):
        write_video(noise(3), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []


def test_a_talkative_ffmpeg_does_not_block(tmp_path: Path, fake_ffmpeg: Callable[[str], None]) -> None:
    fake_ffmpeg('yes \'a line of complaint\' | head -c 1000000 >&2; exec "$real" "$@"')
    assert write_video(noise(3), tmp_path / "clip.mp4", SPEC, metadata={}).num_frames == 3


def test_no_ffmpeg_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(S2VideoError, match="cannot start ffmpeg"):
        write_video(noise(3), tmp_path / "clip.mp4", SPEC, metadata={})
    assert os.listdir(tmp_path) == []


def test_a_path_that_cannot_be_written_is_refused_before_any_frame(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    frames = noise(2)
    with pytest.raises(InputError, match="cannot write"):
        write_video(frames, tmp_path / "file" / "clip.mp4", SPEC, metadata={})
    assert len(list(frames)) == 2


@pytest.mark.parametrize(
    ("fps", "crf"),
    [(Fraction(0), 18), (Fraction(-16), 18), (Fraction(1_001_001), 18), (Fraction(29.97), 18), (16, -1), (16, 52)],
)
def test_specs_that_ffmpeg_cannot_keep(fps: Fraction, crf: int) -> None:
    with pytest.raises(InputError, match="expected a"):
        VideoSpec(Fraction(fps), crf)


def test_a_comparison_failing_leaves_nothing(
    tmp_path: Path, started: list[subprocess.Popen], fake_ffmpeg: Callable[[str], None]
) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(noise(2), clip, SPEC, metadata={})
    fake_ffmpeg("exit 3")
    with pytest.raises(S2VideoError, match="status 3"):
        compare_videos(clip, clip, tmp_path / "both.mp4", (Caption("a"), Caption("b")))
    assert os.listdir(tmp_path) == ["clip.mp4"]
    assert all(process.returncode is not None for process in started)

"""An ffmpeg process that reads pixels, and the arguments that all videos share.

Knows neither tensors, nor colour conversion, nor the name of the file.
"""

import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio_ffmpeg
from numpy.typing import NDArray

from ..errors import InputError, S2VideoError
from ..system.processes import Idleness, helper, look, only_looks, tied
from ..system.shutdown import at_sudden_end
from .formats import VideoSpec

# Since ffmpeg 7.1 the options -color_primaries and -color_trc alone change nothing; this filter sets all four tags.
TAG_SRGB = "setparams=color_primaries=bt709:color_trc=iec61966-2-1:colorspace=gbr:range=pc"
TAG_BT709 = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"

_STALL = 30.0  # seconds for which an encoder that has work may do nothing; less than a rank may


class Ffmpeg:
    """Context manager for an ffmpeg process that reads pixels from its standard input.

    When the block ends, ffmpeg finishes the file; after an exception it is killed. It is also killed if it does nothing
    for `_STALL` seconds while it has work, and when this process ends in any way (on Linux; elsewhere it finishes what
    it has read).

    Args:
        program: the ffmpeg to start. None for the one in imageio-ffmpeg.

    Raises:
        S2VideoError: it does not start; then from `send` and at the end of the block: it failed or stalled.
    """

    def __init__(self, arguments: Sequence[str | bytes], program: Path | None = None) -> None:
        options = ["-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
        try:
            self._process = subprocess.Popen(
                tied([_executable(program or bundled_ffmpeg()), *options, *arguments], signal.SIGKILL),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Ctrl-C must reach only this process, which decides whether the file is finished.
                start_new_session=True,
            )
        except OSError as error:
            raise S2VideoError(f"cannot start ffmpeg ({error}); {_remedy(program)}") from error
        assert self._process.stdin is not None and self._process.stderr is not None
        self._stdin = self._process.stdin
        self._stderr = self._process.stderr
        self._last_lines: deque[bytes] = deque(maxlen=8)
        self._has_work = False
        self._stalled = False
        self._ended = threading.Event()
        # Unread messages would fill the pipe and block ffmpeg, and then this process.
        self._reader = threading.Thread(target=self._last_lines.extend, args=(self._stderr,), daemon=True)
        self._guard = threading.Thread(target=self._end_if_stalled, daemon=True)
        self._reader.start()
        self._guard.start()
        self._known = ExitStack()

    def send(self, pixels: NDArray[Any]) -> None:
        """Send pixels. Blocks while ffmpeg is busy, which bounds the memory."""
        try:
            with self._at_work():
                self._stdin.write(pixels.reshape(-1).data)
        except OSError as error:
            raise self._failure() from error

    def __enter__(self) -> "Ffmpeg":
        self._known.enter_context(at_sudden_end(self._process.kill))
        self._known.enter_context(helper(self._process.pid))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._process.kill()
            self._process.wait()
            self._known.close()
            self._ended.set()
            with suppress(OSError):  # the rest of the buffer cannot be written any more
                self._stdin.close()
            self._reader.join()
            self._stderr.close()

    def _finish(self) -> None:
        try:
            with self._at_work():
                self._stdin.close()
                status = self._process.wait()
        except OSError as error:
            raise self._failure() from error
        if status != 0:
            raise self._failure()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._has_work = True
        try:
            yield
        finally:
            self._has_work = False

    def _end_if_stalled(self) -> None:
        only_looks()
        idleness, waited = Idleness(), 0.0
        while not self._ended.wait(1.0):
            before = idleness.seconds
            passed = idleness.update(lambda: [self._process.pid]) - before
            waited = waited + passed if self._has_work and passed > 0 else 0.0
            if waited >= _STALL and look(self._process.pid) is not None:
                self._stalled = True
                self._process.kill()
                return

    def _failure(self) -> S2VideoError:
        status = self._process.wait()
        self._reader.join()
        if self._stalled:
            return S2VideoError(
                f"ffmpeg did nothing for {_STALL:g} s, as if it was stopped, and was ended; start again"
            )
        reason = b"".join(self._last_lines).decode("utf-8", "replace").strip()
        return S2VideoError(f"ffmpeg ended with status {status}: {reason or 'it gave no reason'}")


def _executable(program: Path) -> str:
    """Return the full path of a program. Raise OSError if there is none that can be run."""
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"no program {program}")
    return found


def raw_input(pixel_format: str, width: int, height: int, fps: Fraction) -> list[str]:
    """Return the ffmpeg arguments that describe the raw frames to be sent."""
    size, rate = f"{width}x{height}", f"{fps.numerator}/{fps.denominator}"
    return ["-f", "rawvideo", "-pixel_format", pixel_format, "-video_size", size, "-framerate", rate, "-i", "pipe:0"]


def h264_mp4(crf: int) -> list[str]:
    """Return the ffmpeg arguments for H.264 in an MP4 file. `crf` is x264's constant rate factor."""
    spec = VideoSpec(Fraction(1), crf)
    return [*spec.encoder_arguments(), *spec.container_arguments()]


def bundled_ffmpeg() -> Path:
    """Return the ffmpeg of imageio-ffmpeg, or of IMAGEIO_FFMPEG_EXE. Raise S2VideoError if there is none."""
    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise S2VideoError(f"cannot start ffmpeg ({error}); {_remedy(None)}") from error


def check_encoder(name: str, program: Path | None = None) -> None:
    """Raise InputError unless this ffmpeg starts and has the encoder `name`."""
    path = program or bundled_ffmpeg()
    try:
        listed = subprocess.run([path, "-hide_banner", "-encoders"], stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise InputError(f"cannot start ffmpeg ({error}); {_remedy(program)}") from error
    if listed.returncode != 0:
        raise InputError(f"{path} is not a working ffmpeg: it does not list its encoders; {_remedy(program)}")
    names = [words[1] for words in map(bytes.split, listed.stdout.splitlines()) if len(words) > 1]
    if name.encode() not in names:
        raise InputError(
            f"{path} has no encoder {name}; choose another output.codec, or an ffmpeg that has it (output.ffmpeg)"
        )


def _remedy(program: Path | None) -> str:
    return "reinstall imageio-ffmpeg" if program is None else "check the path in output.ffmpeg"

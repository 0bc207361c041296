"""Tests of encoding while decoding: order, bounds, and an error on one side ends both."""

import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from video_helpers import LOSSLESS, SPEC, noise

from s2video.errors import NumericalError, S2VideoError
from s2video.media import video_queue
from s2video.media.video import Target, read_video, write_video
from s2video.media.video_queue import CHUNKS_AHEAD, write_videos_meanwhile


class Source:
    """Frames that count how many were taken, and know whether the reader closed them."""

    def __init__(self, num_frames: int = 12, error: BaseException | None = None, nan_at: int | None = None) -> None:
        self.taken, self.closed = 0, False
        self._num_frames, self._error, self._nan_at = num_frames, error, nan_at

    def frames(self) -> Generator[Tensor, None, None]:
        try:
            for index, frame in enumerate(noise(self._num_frames)):
                self.taken += 1
                yield frame * float("nan") if index == self._nan_at else frame
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


@pytest.fixture(autouse=True)
def no_thread_stays() -> Generator[None, None, None]:
    yield
    # of ours: those of other libraries begin and end when they like
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("encoder")] == []


def test_the_file_is_that_of_write_video(tmp_path: Path) -> None:
    [info] = write_videos_meanwhile(Source().frames(), [Target(tmp_path / "a.mp4", LOSSLESS, {"title": "t"})])
    assert (info.num_frames, info.metadata["title"]) == (12, "t")
    write_video(noise(12), tmp_path / "b.mp4", LOSSLESS, metadata={})
    assert torch.equal(read_video(tmp_path / "a.mp4"), read_video(tmp_path / "b.mp4"))


def test_no_more_than_the_queue_holds_is_made_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(20)
    waiting = []

    def slow_encoder(frames, targets):
        for taken, _ in enumerate(frames, start=1):
            for _ in range(10_000):  # the producer continues meanwhile
                if source.taken >= min(20, taken + CHUNKS_AHEAD + 1):
                    break
                time.sleep(0.001)
            waiting.append(source.taken - taken)

    monkeypatch.setattr(video_queue, "write_videos", slow_encoder)
    write_videos_meanwhile(source.frames(), [Target(tmp_path / "a.mp4", SPEC, {})])
    assert len(waiting) == 20
    assert max(waiting) == CHUNKS_AHEAD + 1  # plus one that waits for a slot in the queue


@pytest.mark.parametrize("error", [RuntimeError("no frame"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("num_frames", [0, 1, 12])
def test_an_error_of_the_frames_ends_the_encoder(tmp_path: Path, error: BaseException, num_frames: int) -> None:
    source = Source(num_frames, error)
    with pytest.raises(type(error)) as caught:
        write_videos_meanwhile(source.frames(), [Target(tmp_path / "a.mp4", SPEC, {})])
    assert caught.value is error
    assert source.closed and not list(tmp_path.iterdir())


@pytest.mark.parametrize("nan_at", [0, 5, 11])
def test_an_error_of_the_encoder_ends_the_frames(tmp_path: Path, nan_at: int) -> None:
    source = Source(12, nan_at=nan_at)
    with pytest.raises(NumericalError, match=f"frame {nan_at} "):
        write_videos_meanwhile(source.frames(), [Target(tmp_path / "a.mp4", SPEC, {})])
    assert source.closed and source.taken <= nan_at + CHUNKS_AHEAD + 2
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_cannot_start_ends_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    source = Source(200)
    with pytest.raises(S2VideoError, match="cannot start ffmpeg"):
        write_videos_meanwhile(source.frames(), [Target(tmp_path / "a.mp4", SPEC, {})])
    assert source.closed and source.taken < 200 and not list(tmp_path.iterdir())

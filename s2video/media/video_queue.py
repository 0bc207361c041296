"""Encoding of frames while the next ones are made: `write_videos` in its own thread, behind a short queue.

The calling thread makes the frames, because it communicates with other ranks and receives signals.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from queue import SimpleQueue
from threading import Semaphore

from torch import Tensor

from .video import Target, VideoInfo, write_videos

CHUNKS_AHEAD = 2  # most chunks that wait for the encoder; one hides uneven times, and a second one is cheap


class _AbandonedError(Exception):
    """Raised in the encoder thread to end `write_videos` after making the frames failed."""


def write_videos_meanwhile(frames: Generator[Tensor, None, None], targets: Sequence[Target]) -> list[VideoInfo]:
    """Encode frames like `write_videos`, in a second thread while this thread makes the next frames.

    Raise the errors of `write_videos` and of `frames`. At most `CHUNKS_AHEAD` chunks wait for the encoders. In every
    case `frames` is closed and the thread has ended; after an exception, no temporary file or process is left. If an
    interrupt arrives after the last frame, the encoders finish all files and their sidecars first.
    """
    queue: SimpleQueue[Tensor | _AbandonedError | None] = SimpleQueue()
    slots = Semaphore(CHUNKS_AHEAD)
    with closing(frames), ThreadPoolExecutor(1, "encoder") as pool:
        written = pool.submit(write_videos, _taken(queue, slots), targets)
        written.add_done_callback(
            lambda _: slots.release()
        )  # no chunk will be taken any more, so do not wait for a slot
        try:
            for chunk in frames:
                slots.acquire()
                if written.done():
                    break
                queue.put(chunk)
            queue.put(None)
        except BaseException:
            queue.put(_AbandonedError())
            wait([written])
            raise
        return written.result()


def _taken(queue: SimpleQueue[Tensor | _AbandonedError | None], slots: Semaphore) -> Iterator[Tensor]:
    while (chunk := queue.get()) is not None:
        slots.release()
        if isinstance(chunk, _AbandonedError):
            raise chunk
        yield chunk

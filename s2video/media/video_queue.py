"""Frames are encoded while the next ones are made: `write_video` in a thread of its own, behind a short queue.

The frames are made in the calling thread, which is the one that talks to other ranks and that signals reach.
"""

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore

from torch import Tensor

from .video import VideoInfo, VideoSpec, write_video

CHUNKS_AHEAD = 2  # chunks that wait for the encoder at most; one is what hides uneven times, the other is cheap


class _AbandonedError(Exception):
    """The frames ended in an exception; ends `write_video`, and goes no further."""


def write_video_meanwhile(
    frames: Generator[Tensor, None, None], path: Path, spec: VideoSpec, *, metadata: Mapping[str, str]
) -> VideoInfo:
    """What `write_video` does, with the same errors, in parallel to the making of `frames`, whose errors go on too.

    No more than `CHUNKS_AHEAD` chunks wait for the encoder. However this ends, `frames` is closed and the thread is
    over; after an exception nothing new is at `path`, and neither a temporary file nor a process is left.
    """
    queue: SimpleQueue[Tensor | _AbandonedError | None] = SimpleQueue()
    slots = Semaphore(CHUNKS_AHEAD)
    with closing(frames), ThreadPoolExecutor(1, "encoder") as pool:
        written = pool.submit(write_video, _taken(queue, slots), path, spec, metadata=metadata)
        written.add_done_callback(lambda _: slots.release())  # nobody will take a chunk any more: wait for no slot
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

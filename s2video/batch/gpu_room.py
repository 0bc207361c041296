"""A GPU that decodes one video while it denoises the next: whether it has the memory, and in which order they run.

Knows sizes and bytes, not models.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ..config.run import RunConfig

_USABLE = 0.9  # share of a GPU's memory; fragmentation and other libraries take the rest


class GpuRoom:
    """A record of memory peaks. Both fit only if each peak was measured and the sum fits; on a CPU always."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._peaks: dict[tuple[object, ...], int] = {}  # bytes; for decoding, in addition to those before

    def enter_thread(self) -> None:
        """Make the device the current one in a new thread, and give the thread a stream of its own.

        All threads begin with the same stream, in which each copy to the CPU would wait for the whole step that the
        main thread has queued.
        """
        if self._is_gpu:
            torch.cuda.set_device(self._device)
            torch.cuda.set_stream(torch.cuda.Stream(self._device))

    def mark(self) -> torch.cuda.Event | None:
        """Return a mark behind all work that this thread has queued; None without a GPU."""
        return torch.cuda.current_stream(self._device).record_event() if self._is_gpu else None

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """Let what this thread queues from now on run after the mark."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    @contextmanager
    def measured(self, what: Literal["denoising", "decoding"], config: RunConfig) -> Iterator[None]:
        """Measure the peak of the block. Nothing else may run on the device at the same time."""
        if not self._is_gpu:
            yield
            return
        before = torch.cuda.memory_allocated(self._device) if what == "decoding" else 0
        torch.cuda.reset_peak_memory_stats(self._device)
        yield
        self._peaks[_key(what, config)] = torch.cuda.max_memory_allocated(self._device) - before

    def forget(self) -> None:
        """Forget all peaks, because other models are on the device now."""
        self._peaks.clear()

    def holds(self, decoding: RunConfig, denoising: RunConfig) -> bool:
        """Return whether both can run on the device at the same time."""
        if not self._is_gpu:
            return True
        needed = [self._peaks.get(_key("decoding", decoding)), self._peaks.get(_key("denoising", denoising))]
        total = torch.cuda.get_device_properties(self._device).total_memory
        return None not in needed and sum(n for n in needed if n is not None) <= _USABLE * total


def _key(what: Literal["denoising", "decoding"], config: RunConfig) -> tuple[object, ...]:
    """Return what the peak depends on: models, their places and the size, and for denoising what is in memory at once.

    That are the passes, the text, and the predictions that are kept for reuse.
    """
    sampling, guidance = config.sampling, config.guidance
    models = (config.model.model_dump_json(), config.parallel.model_dump_json())
    size = (what, *models, sampling.width, sampling.height, sampling.num_frames)
    if what == "decoding":
        return size
    has_uncond = tuple(scale != 1 for scale in guidance.cfg_scales)
    passes = (guidance.method, has_uncond, guidance.uses_s2, guidance.num_draws, guidance.share_prefix)
    kept = (guidance.reuse.spec(), sampling.max_sequence_length)
    return *size, *passes, *kept, guidance.batch_branches, config.image is not None, len(config.control.references)

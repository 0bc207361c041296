"""Whether a GPU has memory to decode one video while it denoises the next. Knows sizes and bytes, not models."""

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
        self._peaks: dict[tuple[str, int, int, int], int] = {}  # bytes; for decoding, in addition to those before

    def enter_thread(self) -> None:
        """Make the device the current one in a new thread, as in the main thread."""
        if self._is_gpu:
            torch.cuda.set_device(self._device)

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

    def holds(self, decoding: RunConfig, denoising: RunConfig) -> bool:
        """Return whether both can run on the device at the same time."""
        if not self._is_gpu:
            return True
        needed = [self._peaks.get(_key("decoding", decoding)), self._peaks.get(_key("denoising", denoising))]
        total = torch.cuda.get_device_properties(self._device).total_memory
        return None not in needed and sum(n for n in needed if n is not None) <= _USABLE * total


def _key(what: str, config: RunConfig) -> tuple[str, int, int, int]:
    sampling = config.sampling
    return what, sampling.width, sampling.height, sampling.num_frames

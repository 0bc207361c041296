"""Storage of the blocks' weights while unused: whole on every rank, sharded over the ranks, or in CPU memory.

Each step enters `block(index)` once for all branches. So each block is fetched once per step, while the previous block
computes. Knows no model: blocks are modules, and `Read` loads their parameters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from .mesh import Axis
from .traffic import record

Read = Callable[[int, str, int, int], Tensor]
"""(block, parameter's name in it, start, stop) -> elements start to stop of the flattened parameter, [stop - start] on
the CPU, in the file's dtype. `start` < `stop`."""

_ALIGNMENT = 256  # bytes; every parameter begins at a multiple of this
PIECE = 2**26  # bytes; torch rounds a pinned allocation up to a power of two, so a block is pinned in such pieces


class BlockWeights(Protocol):
    """Access to the weights of one block at a time. In each step every rank enters all blocks in order."""

    def block(self, index: int) -> AbstractContextManager[None]:
        """Return a context in which block `index` is whole on this rank's device, and the next block is being fetched.

        The exit frees the block's memory. Outside the context, only `WholeWeights` has usable parameters.
        """
        ...


class WholeWeights:
    """Weights that are whole on every rank's device, so nothing is fetched."""

    def block(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()


WHOLE = WholeWeights()


class Handle(Protocol):
    """A running fetch."""

    def wait(self) -> object:
        """Make the device's current stream (on the CPU, this thread) wait until the block can be used."""
        ...


class FetchedWeights(ABC):
    """Weights that are fetched one block ahead. Subclasses implement fetch and free."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._in_flight: dict[int, Handle] = {}

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """See `BlockWeights.block`."""
        for left in self._in_flight.keys() - {index}:  # left by a step that raised
            self._in_flight.pop(left).wait()
            self._free(left)
        for wanted in range(index, min(index + 2, self._num_blocks)):
            if wanted not in self._in_flight:
                self._in_flight[wanted] = self._fetch(wanted)
        self._in_flight.pop(index).wait()
        try:
            yield
        finally:
            self._free(index)

    @abstractmethod
    def _fetch(self, index: int) -> Handle:
        """Start to fetch block `index`. Called in the same order on every rank."""

    @abstractmethod
    def _free(self, index: int) -> None:
        """Free block `index`. Work queued on the device may still use it."""


class ShardedWeights(FetchedWeights):
    """Weights of which each rank keeps its rows of every parameter; a block is gathered before use (FSDP2).

    A gather moves bytes, so parameters keep their dtypes. Parameters outside the blocks are not changed.

    Args:
        blocks: modules on the meta device; their parameters become DTensors.
        axis: the ranks that share the weights. Their group should serve nothing else; otherwise attention would queue
            behind the prefetch of the next block.
    """

    def __init__(self, blocks: Sequence[nn.Module], axis: Axis, device: torch.device, read: Read) -> None:
        super().__init__(len(blocks))
        self._blocks: list[FSDPModule] = []
        self._sent: list[int] = []
        mesh = DeviceMesh.from_group(cast(torch.distributed.ProcessGroup, axis.group), device.type)
        for index, block in enumerate(blocks):
            # several branches run through a block, so `_free` reshards it, not FSDP after a forward
            fully_shard(block, mesh=mesh, reshard_after_forward=False)
            block.to_empty(device=device)
            sent = 0
            for name, parameter in block.named_parameters():
                rows, width = parameter.shape[0], math.prod(parameter.shape[1:])
                share = -(-rows // axis.size)
                part = cast(DTensor, parameter).to_local()
                fill(part, read, index, name, min(axis.rank * share, rows) * width)
                sent += share * width * parameter.element_size() * (axis.size - 1)
            self._blocks.append(cast(FSDPModule, block))
            self._sent.append(sent)

    def _fetch(self, index: int) -> Handle:
        record("weights", self._sent[index])
        return cast(Handle, self._blocks[index].unshard(async_op=True))

    def _free(self, index: int) -> None:
        self._blocks[index].reshard()


class StreamedWeights(FetchedWeights):
    """Weights in CPU memory that are copied in turn to two buffers on the device, block i to buffer i mod 2.

    On CUDA the CPU memory is pinned, and a block is copied on a separate stream while the previous one computes.

    Args:
        blocks: modules on the meta device; their parameters become views of the buffers.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, read: Read) -> None:
        super().__init__(len(blocks))
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._stored: list[list[Tensor]] = []
        for index, block in enumerate(blocks):
            stored = torch.empty(_flat_size(block), dtype=torch.uint8)
            for name, view in _views(stored, block).items():
                fill(view, read, index, name, 0)
            pieces = stored.split(PIECE)
            self._stored.append([piece.pin_memory() if self._stream else piece for piece in pieces])
        longest = max(_flat_size(block) for block in blocks)
        self._buffers = [torch.empty(longest, dtype=torch.uint8, device=device) for _ in range(2)]
        for index, block in enumerate(blocks):
            block.load_state_dict(_views(self._buffers[index % 2], block), assign=True)

    def _fetch(self, index: int) -> Handle:
        record("weights", sum(piece.nbytes for piece in self._stored[index]))
        if self._stream is None:
            self._copy(index)
            return _Arrived()
        # Wait only for work queued so far: the last user of this buffer is in it, the block to compute now is not yet.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._copy(index)
        return self._stream.record_event()

    def _copy(self, index: int) -> None:
        for target, piece in zip(self._buffers[index % 2].split(PIECE), self._stored[index], strict=False):
            target[: len(piece)].copy_(piece, non_blocking=True)

    def _free(self, index: int) -> None:
        """Do nothing: the buffer is overwritten later."""


class _Arrived:
    def wait(self) -> None:
        pass


def fill(part: Tensor, read: Read, block: int, name: str, start: int) -> None:
    """Read a contiguous `part` of a block's parameter, which begins at its element `start`, in place."""
    if part.numel():
        with torch.no_grad():
            part.view(-1).copy_(read(block, name, start, start + part.numel()))


def _flat_size(block: nn.Module) -> int:
    return sum(aligned(parameter.nbytes) for parameter in block.parameters())


def _views(flat: Tensor, block: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a block as consecutive views of `flat` [bytes]."""
    views, offset = {}, 0
    for name, parameter in block.named_parameters():
        views[name] = flat[offset : offset + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        offset += aligned(parameter.nbytes)
    return views


def aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

"""Where the blocks' weights lie between their turns: whole on every rank, sharded over the ranks, or in CPU memory.

The lockstep loop enters `block(index)` once a step, for all branches: that is one fetch of each block, and the next
block's is under way meanwhile. Knows no model: blocks are modules, and `Read` brings their parameters.
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
"""(block, parameter's name in it, start, stop) -> those elements of the flattened parameter, [stop - start] on the
CPU, in the file's dtype. `start` < `stop`."""

_ALIGNMENT = 256  # bytes between addresses at which a parameter may begin
_PIECE = 2**26  # bytes; torch rounds a pinned allocation up to a power of two, so a block is pinned in such pieces


class BlockWeights(Protocol):
    """The weights of one block at a time. Every rank enters the blocks in order, from 0 to the last, each step."""

    def block(self, index: int) -> AbstractContextManager[None]:
        """Inside, block `index` is whole on this rank's device, and the next block's fetch is in flight; after, its
        memory is given back. Outside, only `WholeWeights` has parameters that can be computed with."""
        ...


class WholeWeights:
    """Every rank has all blocks on its device: there is nothing to fetch."""

    def block(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()


WHOLE = WholeWeights()


class Handle(Protocol):
    """A fetch in flight."""

    def wait(self) -> object:
        """Make the device's current stream (on the CPU: this thread) wait until the block can be used."""
        ...


class FetchedWeights(ABC):
    """Weights that come when their turn does, one block ahead. How they come and go is up to the subclass."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._in_flight: dict[int, Handle] = {}

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """See `BlockWeights.block`."""
        for left in self._in_flight.keys() - {index}:  # by a step that ended in an error
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
        """Start to bring block `index`; called in the same order on every rank."""

    @abstractmethod
    def _free(self, index: int) -> None:
        """Block `index` is used no more; what was queued on the device may still run."""


class ShardedWeights(FetchedWeights):
    """Each rank keeps its rows of every parameter, and a block is gathered when its turn comes (FSDP2).

    A gather moves bytes, so parameters keep their dtypes. What belongs to no block is not touched.

    Args:
        blocks: on the meta device; their parameters become DTensors.
        axis: the ranks that share the weights; their group should serve nothing else, or the prefetch of a block
            would queue before the attention of the current one.
    """

    def __init__(self, blocks: Sequence[nn.Module], axis: Axis, device: torch.device, read: Read) -> None:
        super().__init__(len(blocks))
        self._blocks: list[FSDPModule] = []
        self._sent: list[int] = []
        mesh = DeviceMesh.from_group(cast(torch.distributed.ProcessGroup, axis.group), device.type)
        for index, block in enumerate(blocks):
            # several branches run through a block, so it is freed by us and not after a forward
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
    """All blocks lie in CPU memory, and take turns in two buffers on the device, block i in buffer i mod 2.

    On CUDA the CPU memory is pinned, and a block is copied on a stream of its own while the one before it computes.

    Args:
        blocks: on the meta device; their parameters become views of the buffers.
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
            pieces = stored.split(_PIECE)
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
        # The block that used this buffer last was queued before now, and the block that computes meanwhile is not yet.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._copy(index)
        return self._stream.record_event()

    def _copy(self, index: int) -> None:
        for target, piece in zip(self._buffers[index % 2].split(_PIECE), self._stored[index], strict=False):
            target[: len(piece)].copy_(piece, non_blocking=True)

    def _free(self, index: int) -> None:
        """The buffer is simply written over."""


class _Arrived:
    def wait(self) -> None:
        pass


def fill(part: Tensor, read: Read, block: int, name: str, start: int) -> None:
    """Read a contiguous `part` of a block's parameter, which begins at element `start` of it, into place."""
    if part.numel():
        with torch.no_grad():
            part.view(-1).copy_(read(block, name, start, start + part.numel()))


def _flat_size(block: nn.Module) -> int:
    return sum(_aligned(parameter.nbytes) for parameter in block.parameters())


def _views(flat: Tensor, block: nn.Module) -> dict[str, Tensor]:
    """The parameters of a block, one behind the other, as views of `flat` [bytes]."""
    views, offset = {}, 0
    for name, parameter in block.named_parameters():
        views[name] = flat[offset : offset + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        offset += _aligned(parameter.nbytes)
    return views


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

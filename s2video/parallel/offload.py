"""Modules that stay in CPU memory and are copied to the device while they are used. Knows no model.

Weights do not change, so nothing is ever copied back: after use, the copy on the device is freed.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from .weights import PIECE, aligned


class Offloaded(Protocol):
    """A module that is on the device between `bring` and `release`."""

    def bring(self) -> None:
        """Make the module usable on the device. Does nothing if it is there."""

    def release(self) -> None:
        """Free the device's memory. Work queued on the device may still use it. Does nothing if it is not there."""


def keep_on_cpu(module: nn.Module, device: torch.device, *, pins_from: int = 1) -> Offloaded:
    """Return a module as one that is away from the device.

    Args:
        module: on the CPU. Nothing else may change its weights from now on.
        pins_from: use from which on its CPU memory is pinned. Pinning takes longer than one copy from memory that is
            not pinned, and makes each later copy several times as fast; 2 suits a module that may be used only once.
    """
    tensors = [*module.parameters(), *module.buffers()]
    is_plain = all(type(tensor) in (nn.Parameter, Tensor) for tensor in tensors)
    if device.type == "cpu" or not is_plain:  # a quantized tensor has parts that only its class can move
        return _Moved(module, device)
    return Copied(module, device, pins_from=pins_from)


class _Moved:
    """A module that is moved to the device and back."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module = module
        self._device = device
        self._is_here = False

    def bring(self) -> None:
        if not self._is_here:
            self._module.to(self._device)
        self._is_here = True

    def release(self) -> None:
        if self._is_here:
            self._module.to("cpu")
        self._is_here = False


class Copied:
    """A module whose tensors are stored one after another in pieces of CPU memory, and are views of one on the device.

    Away from the device its tensors have no elements, so that using them raises an error. Takes the arguments of
    `keep_on_cpu`.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, pins_from: int = 1) -> None:
        self._device = device
        self._pins_from = pins_from
        self._uses = 0
        self._is_here = False
        # tensors that several modules share are listed once
        self._tensors: list[Tensor] = list(dict.fromkeys([*module.parameters(), *module.buffers()]))
        self._layout = [(tensor.dtype, tensor.shape, tensor.nbytes) for tensor in self._tensors]
        self._pieces = self._packed()

    def bring(self) -> None:
        """See `Offloaded.bring`. The copy is queued on the current stream."""
        if self._is_here:
            return
        self._uses += 1
        if self._uses == self._pins_from:
            self._pin()
        flat = torch.empty(sum(aligned(size) for _, _, size in self._layout), dtype=torch.uint8, device=self._device)
        for target, piece in zip(flat.split(PIECE), self._pieces, strict=True):
            target.copy_(piece, non_blocking=True)
        offset = 0
        for tensor, (dtype, shape, size) in zip(self._tensors, self._layout, strict=True):
            tensor.data = flat[offset : offset + size].view(dtype).view(shape)
            offset += aligned(size)
        self._is_here = True

    def release(self) -> None:
        """See `Offloaded.release`. Memory is reused in the order of the stream, so nothing has to be waited for."""
        for tensor in self._tensors if self._is_here else ():
            _empty(tensor)
        self._is_here = False

    def _packed(self) -> list[Tensor]:
        """Return all tensors' bytes in pieces; each tensor is emptied as soon as it is packed."""
        size = sum(aligned(size) for _, _, size in self._layout)
        pieces = [torch.empty(min(PIECE, size - start), dtype=torch.uint8) for start in range(0, size, PIECE)]
        offset = 0
        for tensor in self._tensors:
            content = tensor.detach().contiguous().view(-1).view(torch.uint8)
            start = 0
            while start < len(content):
                index, at = divmod(offset + start, PIECE)
                part = content[start : start + PIECE - at]
                pieces[index][at : at + len(part)] = part
                start += len(part)
            offset += aligned(len(content))
            _empty(tensor)
        return pieces

    def _pin(self) -> None:
        for index, piece in enumerate(self._pieces):  # one after another, so that only one is there twice
            self._pieces[index] = piece.pin_memory()


def _empty(tensor: Tensor) -> None:
    tensor.data = torch.empty(0, dtype=tensor.dtype)

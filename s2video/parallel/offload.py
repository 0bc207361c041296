"""Modules that stay in CPU memory and are copied to the device while they are used. Knows no model.

Weights do not change, so nothing is ever copied back: after use, the copy on the device is freed.
"""

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .weights import PIECE, aligned

_PLAIN: tuple[type, ...] = (nn.Parameter, Tensor)  # a quantized tensor has parts that only its own class can move


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
    is_plain = all(type(tensor) in _PLAIN for tensor in tensors)
    if device.type == "cpu" or not is_plain:
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
        self._slots = _slots(module)
        tensors = [slots[0][0][slots[0][1]] for slots in self._slots]
        self._layout = [(tensor.dtype, tensor.shape, tensor.nbytes) for tensor in tensors]
        self._pieces = self._packed(tensors)

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
        for number, (dtype, shape, size) in enumerate(self._layout):
            self._put(number, flat[offset : offset + size].view(dtype).view(shape))
            offset += aligned(size)
        self._is_here = True

    def release(self) -> None:
        """See `Offloaded.release`. Memory is reused in the order of the stream, so nothing has to be waited for."""
        for number, (dtype, _, _) in enumerate(self._layout if self._is_here else ()):
            self._put(number, torch.empty(0, dtype=dtype))
        self._is_here = False

    def _put(self, number: int, value: Tensor) -> None:
        """Put a value into all slots of a tensor."""
        slots = self._slots[number]
        if isinstance(slots[0][0][slots[0][1]], nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        for tensors, name in slots:
            tensors[name] = value

    def _packed(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return all tensors' bytes in pieces. Each tensor is taken from the list and freed as soon as it is packed."""
        size = sum(aligned(size) for _, _, size in self._layout)
        pieces = [torch.empty(min(PIECE, size - start), dtype=torch.uint8) for start in range(0, size, PIECE)]
        offset = 0
        for number, (dtype, _, _) in enumerate(self._layout):
            content = tensors.pop(0).detach().contiguous().view(-1).view(torch.uint8)
            start = 0
            while start < len(content):
                index, at = divmod(offset + start, PIECE)
                part = content[start : start + PIECE - at]
                pieces[index][at : at + len(part)] = part
                start += len(part)
            offset += aligned(len(content))
            self._put(number, torch.empty(0, dtype=dtype))
        return pieces

    def _pin(self) -> None:
        for index, piece in enumerate(self._pieces):  # one after another, so that only one is there twice
            self._pieces[index] = piece.pin_memory()


Slot = tuple[dict[str, Any], str]  # the parameters or buffers of a module, and the name of one of them


def _slots(module: nn.Module) -> list[list[Slot]]:
    """Return the slots of each tensor of a module and its submodules; some share a tensor."""
    found: dict[int, list[Slot]] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((cast(dict[str, Any], tensors), name))
    return list(found.values())

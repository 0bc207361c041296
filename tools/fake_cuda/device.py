"""A pretended GPU: what has to be replaced in torch so that fake tensors can live on `cuda:0` without one.

Everything here is global and stays for the rest of the process, so call `pretend_cuda` in a process of its own.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group
from torch.overrides import TorchFunctionMode

from .watchdog import PINNED, Watchdog, current

GPU = torch.device("cuda", 0)
NAME, MEMORY = "pretended H100", 80 * 10**9
_CUDA, _META = 1, 14  # c10::DeviceType
_HALF = (torch.float16, torch.bfloat16)
aten = torch.ops.aten


def pretend_cuda() -> None:
    """Make torch accept fake tensors on CUDA devices: a guard, a compute capability of 9.0, streams that do nothing.

    `torch.cuda.is_available` stays False, because fake tensors would otherwise ask the driver.
    """
    name = "libc10.dylib" if sys.platform == "darwin" else "libc10.so"
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    # Without a guard, `x[0]`, `copy_` and convolutions say "PyTorch is not linked with support for cuda devices". The
    # registry is an exported symbol of libc10; Meta's guard, which does nothing, takes CUDA's place.
    guards = (ctypes.c_void_p * 22).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[_CUDA] = guards[_META]
    cuda: Any = torch.cuda
    cuda.is_available = lambda: False
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.device_count = lambda: 8
    cuda.current_device = lambda: 0
    cuda.set_device = lambda device: None
    cuda.empty_cache = cuda.synchronize = lambda *device: CALLS.append(("synchronize",))
    cuda.get_device_name = lambda device=None: NAME
    cuda.get_device_properties = lambda device=None: SimpleNamespace(name=NAME, total_memory=MEMORY)
    cuda.memory_allocated = lambda device=None: _counted("live")
    cuda.max_memory_allocated = lambda device=None: _counted("peak")
    cuda.reset_peak_memory_stats = _reset_peak
    cuda.Stream, cuda.Event, cuda.stream = FakeStream, FakeEvent, _on_stream
    cuda.current_stream = lambda device=None: FakeStream.current
    cuda.default_stream = lambda device=None: FakeStream.default
    torch.Generator = _Generator  # type: ignore[misc]
    tensor: Any = torch.Tensor
    tensor.pin_memory = _pin_memory
    tensor.is_pinned = lambda self, device=None: torch._C._storage_address(self) in PINNED
    tensor.record_stream = lambda self, stream: CALLS.append(("record_stream", stream.name))
    module: Any = torch.nn.Module
    module._apply = _apply
    from_group = DeviceMesh.from_group

    def real_from_group(*args: Any, **kwargs: Any) -> DeviceMesh:
        with unset_fake_temporarily():  # it computes with the numbers of ranks
            return from_group(*args, **kwargs)

    DeviceMesh.from_group = staticmethod(real_from_group)  # type: ignore[method-assign, assignment]
    _fsdp_param.alloc_storage = lambda tensor: _resize(tensor, tensor.numel() * tensor.itemsize)
    _fsdp_param.free_storage = lambda tensor: _resize(tensor, 0)
    _fsdp_param_group.alloc_storage = _fsdp_param.alloc_storage


class _Generator(torch.Generator):
    """A generator of the CPU, whatever the device: fake tensors get no numbers."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")


def _counted(what: str) -> int:
    """Return bytes of tensors on the GPU, as the watchdog counts them; 0 without one."""
    watchdog = current()
    return 0 if watchdog is None else int(getattr(watchdog, what))


def _reset_peak(device: Any = None) -> None:
    if (watchdog := current()) is not None:
        watchdog.reset_peak()


CALLS: list[tuple[str, ...]] = []  # of streams and events, in order: (method, names); for tests of their order


class FakeEvent:
    """Stands for `torch.cuda.Event`; records its calls in `CALLS`."""

    def __init__(self, **_: Any) -> None:
        self.stream = ""

    def record(self, stream: "FakeStream | None" = None) -> None:
        self.stream = (stream or FakeStream.current).name
        CALLS.append(("record", self.stream))

    def wait(self, stream: "FakeStream | None" = None) -> None:
        CALLS.append(("wait", (stream or FakeStream.current).name, self.stream))

    def synchronize(self) -> None:
        CALLS.append(("synchronize", self.stream))

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1.0


class FakeStream:
    """Stands for `torch.cuda.Stream`; records its calls in `CALLS`. Named by the order of making."""

    current: "FakeStream"
    default: "FakeStream"
    _count = 0

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.name = f"stream {FakeStream._count}"
        FakeStream._count += 1

    def wait_stream(self, other: "FakeStream") -> None:
        CALLS.append(("wait_stream", self.name, other.name))

    def wait_event(self, event: FakeEvent) -> None:
        CALLS.append(("wait", self.name, event.stream))

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        event = event or FakeEvent()
        event.record(self)
        return event

    def synchronize(self) -> None:
        CALLS.append(("synchronize", self.name))


FakeStream.current = FakeStream.default = FakeStream()


@contextmanager
def _on_stream(stream: FakeStream | None) -> Iterator[None]:
    before = FakeStream.current
    FakeStream.current = stream or before
    try:
        yield
    finally:
        FakeStream.current = before


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    PINNED[torch._C._storage_address(tensor)] = tensor
    return tensor


def _resize(tensor: torch.Tensor, size: int) -> None:
    """Note what FSDP does with the storage of a gathered parameter; a fake tensor's has no memory."""
    if (watchdog := current()) is not None:
        watchdog.resize(tensor, size)


def _apply(module: Any, convert: Any, recurse: bool = True) -> Any:
    """Convert parameters and buffers as `Module.to` does; torch's own way exchanges tensors, which fakes refuse."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = torch.nn.Parameter(convert(_fake(value)), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = convert(_fake(value))
    return module


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor in place of a real one, which fake tensors cannot be used with."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or current() is None:  # a fake one, or one of FSDP's
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class GpuAttention(TorchFunctionMode):
    """`F.scaled_dot_product_attention` as a GPU of compute capability 9.0 would run it.

    Torch asks its build which kernels there are; a CPU build would write out the whole matrix of scores. The order is
    that of CUDA builds: flash, memory-efficient, then cuDNN, as far as `torch.nn.attention.sdpa_kernel` allows each.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask")
        q, k, v, mask = (args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names))
        if q.device.type != "cuda":
            return func(*args, **kwargs)
        in_half, causal = q.dtype in _HALF, bool(kwargs.get("is_causal", False))
        if kwargs.get("enable_gqa"):
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        backends = torch.backends.cuda
        if backends.flash_sdp_enabled() and mask is None and in_half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256:
            return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False)[0]
        if mask is not None:
            mask = torch.zeros_like(mask, dtype=q.dtype).expand(*q.shape[:-1], k.shape[-2])
        if backends.mem_efficient_sdp_enabled():
            return aten._scaled_dot_product_efficient_attention(q, k, v, mask, False, 0.0, causal)[0]
        if backends.cudnn_sdp_enabled() and in_half and q.shape[-1] <= 128:
            return aten._scaled_dot_product_cudnn_attention(q, k, v, mask, False, 0.0, causal, False)[0]
        raise RuntimeError("No available kernel. Aborting execution.")


@contextmanager
def fake_gpu() -> Iterator[Watchdog]:
    """Run the body on a pretended GPU, with `pretend_cuda` done; tensors made in it are fake. Yield the watchdog."""
    with FakeTensorMode(), GpuAttention(), torch.no_grad(), Watchdog() as watchdog:
        yield watchdog

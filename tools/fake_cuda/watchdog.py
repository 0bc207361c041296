"""A mode that sees every operation on fake tensors: faults, waits, half precision in the wrong place, bytes in use."""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_FLOATS = (torch.float32, torch.float64)

# All floating-point tensors of one call must have one dtype: fake kernels do not check it, CUDA's do.
ONE_DTYPE = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten._convolution, aten.linear),
    *(aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm),
    *(aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_efficient_attention),
    *(aten._scaled_dot_product_cudnn_attention, aten._scaled_dot_product_attention_math, aten.index_put),
    *(aten.index_put_, aten.dot, aten.mv, aten.addmv),
}
COLLECTIVES = ("c10d", "_c10d_functional")

# Places whose arithmetic must be in float32: (part of the file's path, function; empty for all functions).
IN_FLOAT32 = (
    ("s2video/guidance/equations.py", ""),  # λ and ω multiply small differences
    ("s2video/sampling/guiders.py", ""),
    ("diffusers/guiders/", ""),
    ("diffusers/schedulers/", ""),  # the latents' error would grow with every step
    ("s2video/models/wan/blocks.py", "rotate"),  # positions up to 1024 times a frequency
    ("diffusers/models/embeddings.py", "apply_rotary_emb"),
    ("diffusers/models/embeddings.py", "get_1d_rotary_pos_embed"),
    ("diffusers/models/embeddings.py", "get_timestep_embedding"),  # timesteps up to 1000 have more digits than bfloat16
    ("s2video/parallel/ring.py", "merge_partial"),  # sums over ranks of outputs with their log-sum-exps
)
_ARITHMETIC = {
    *(aten.mul, aten.mul_, aten.add, aten.add_, aten.sub, aten.sub_, aten.div, aten.div_, aten.exp, aten.sin, aten.cos),
    *(aten.mean, aten.std, aten.var, aten.sum, aten.logaddexp, aten.lerp, aten.sigmoid, aten.rsub, aten.pow),
    *(aten.linalg_vector_norm, aten.outer, aten.log, aten.sqrt),
}

PINNED: dict[int, Tensor] = {}  # pinned CPU memory: address of a storage -> a tensor that keeps it


class Watchdog(TorchDispatchMode):
    """Counts what would go wrong or slow on a GPU, by the innermost place in this package or diffusers.

    Attributes:
        faults: operations that CUDA or NCCL would refuse, or that lose precision -> number of times.
        syncs: waits for the GPU: `.item()`, `bool`, `equal`, copies to the CPU, results whose size depends on values.
        uploads: copies from pageable CPU memory to the GPU.
        live, peak: bytes of tensors on the GPU, now and at most since `reset_peak`.
        answers: what `.item()` gives at a place, since fake tensors have no values; elsewhere 1. As bool for bool.
        num_nonzero: rows that `nonzero` gives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults, self.syncs, self.uploads = Counter[str](), Counter[str](), Counter[str]()
        self.live = self.peak = 0
        self.answers: dict[str, Any] = {"parallel/collectives.py:any_rank": 0}
        self.num_nonzero = 1
        self._seen: dict[int, Any] = {}  # id of a tensor -> a reference to it
        self._storages: dict[int, list[int]] = {}  # address -> bytes, tensors that share it

    def __enter__(self) -> Any:
        _entered.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _entered.remove(self)
        super().__exit__(*error)

    def reset_peak(self) -> None:
        self.peak = self.live

    def clear(self) -> None:
        """Forget faults, syncs and uploads, and begin the peak again."""
        for counter in (self.faults, self.syncs, self.uploads):
            counter.clear()
        self.reset_peak()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation, tensors = func.overloadpacket, list(_tensors((args, kwargs.values())))
        on_gpu = any(t.device.type == "cuda" for t in tensors)
        if operation is aten._local_scalar_dense:
            return self._scalar(func, args, tensors[0])
        if operation is aten.equal:
            self.syncs[f"equal() at {place()}"] += on_gpu
            return True
        if operation is aten.nonzero and on_gpu:
            self.syncs[f"nonzero at {place()}"] += 1
            return torch.empty(self.num_nonzero, tensors[0].ndim, dtype=torch.int64, device=tensors[0].device)
        self._check_dtypes(func, operation, tensors, args)
        if operation is aten.copy_ and len(tensors) == 2:
            self._check_copy(*tensors)
        result = func(*args, **kwargs)  # FakeTensorMode itself raises where devices are mixed
        for made in _tensors((result,)):
            if type(made) is not FakeTensor:
                continue
            if made.device.type == "cuda":
                self._count(made)
                if operation is aten._to_copy and not on_gpu:
                    self._upload(tensors[0])
                if operation in _ARITHMETIC and made.is_floating_point() and made.dtype not in _FLOATS:
                    self._check_precision(operation, made)
            elif on_gpu and operation is not aten.copy_:
                self.syncs[f"copy to the CPU at {place()}"] += 1
        return result

    def _scalar(self, func: Any, args: Any, tensor: Tensor) -> Any:
        if tensor.device.type == "cuda":
            self.syncs[f"item() at {place()}"] += 1
        else:
            try:
                return func(*args)  # small tensors on the CPU keep their values
            except DataDependentOutputException:
                pass
        answer = self.answers.get(place(), 1)
        return bool(answer) if tensor.dtype == torch.bool else answer

    def _check_dtypes(self, func: Any, operation: Any, tensors: list[Tensor], args: Any) -> None:
        if operation in ONE_DTYPE or func.namespace in COLLECTIVES:
            dtypes = {t.dtype for t in tensors if t.is_floating_point()}
            if len(dtypes) > 1:
                names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
                self.faults[f"{func.name()} of {names} at {place()}"] += 1
        if operation is torch.ops.c10d.alltoall_base_:
            self._check_sizes(func, args)
        if func.namespace == "c10d" and any(t.device.type == "cpu" for t in tensors):
            self.faults[f"{func.name()} of a CPU tensor at {place()}"] += 1

    def _check_sizes(self, func: Any, args: Any) -> None:
        """Find splits of an all-to-all that do not add up to its tensors; a fake process group does not look."""
        output, given, _, *splits = args
        for tensor, sizes in zip((output, given), splits, strict=False):
            if isinstance(sizes, list | tuple) and sizes and sum(sizes) != tensor.shape[0]:
                self.faults[f"{func.name()} of other sizes at {place()}"] += 1

    def _check_copy(self, target: Tensor, source: Tensor) -> None:
        if target.device.type == "cuda" and source.device.type == "cpu":
            self._upload(source)
        elif target.device.type == "cpu" and source.device.type == "cuda" and not target.is_pinned():
            self.syncs[f"copy to the CPU at {place()}"] += 1

    def _upload(self, source: Tensor) -> None:
        if not source.is_pinned():
            self.uploads[place()] += 1

    def _check_precision(self, operation: Any, made: Tensor) -> None:
        for code, name in _stack():
            if any(part in code and (not function or function == name) for part, function in IN_FLOAT32):
                kind = str(made.dtype).removeprefix("torch.")
                self.faults[f"{operation} in {kind}, not float32, at {place()}"] += 1
                return
            if _is_ours(code):
                return

    def _count(self, made: Tensor) -> None:
        """Count a tensor's storage, if it is new. It is in use as long as a tensor object is that shares it."""
        if id(made) in self._seen:
            return
        key, name = torch._C._storage_address(made), id(made)

        def gone(_: object) -> None:
            del self._seen[name]
            storage = self._storages[key]
            storage[1] -= 1
            if not storage[1]:
                self.live -= self._storages.pop(key)[0]

        # not a reference to the storage: torch's objects for storages do not survive that (seen with 2.13)
        self._seen[name] = weakref.ref(made, gone)
        if key not in self._storages:
            self._storages[key] = [0, 0]
            self.resize(made, _extent(made))
        self._storages[key][1] += 1

    def resize(self, tensor: Tensor, size: int) -> None:
        """Count a known tensor's storage again, whose size in bytes has changed."""
        storage = self._storages[torch._C._storage_address(tensor)]
        self.live += size - storage[0]
        storage[0] = size
        self.peak = max(self.peak, self.live)


def _extent(tensor: Tensor) -> int:
    """Return the bytes from the storage's start to the tensor's last element."""
    if not tensor.numel():
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.storage_offset() + steps + 1) * tensor.element_size()


_entered: list[Watchdog] = []


def current() -> Watchdog | None:
    """Return the watchdog that is on, if any."""
    return _entered[-1] if _entered else None


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _stack() -> Iterator[tuple[str, str]]:
    """Yield file and function of each frame, innermost first, without this package's."""
    frame = sys._getframe(1)
    while frame is not None:
        if "/fake_cuda/" not in frame.f_code.co_filename:
            yield frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]


def _is_ours(file: str) -> bool:
    return "/s2video/" in file or "/diffusers/" in file


def place() -> str:
    """Return "file.py:function" of the innermost frame in this package or diffusers; else of any frame."""
    frames = list(_stack())
    file, name = next((frame for frame in frames if _is_ours(frame[0])), frames[-1])
    return f"{'/'.join(file.split('/')[-2:])}:{name}"

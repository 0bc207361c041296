"""Tests of modules whose weights stay in CPU memory: packed and copied without a change, never copied back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from s2video.parallel import offload as module
from s2video.parallel.offload import Copied, keep_on_cpu

CPU = torch.device("cpu")
COPIES = ("copy_", "_to_copy", "clone")


class Mixed(nn.Module):
    """Tensors of several dtypes, sizes and strides, two of them shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(7, 33), nn.Linear(33, 7).bfloat16(), nn.Linear(7, 33)
        self.last.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.turned = nn.Parameter(torch.randn(5, 300).t())
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("is_used", torch.tensor([True, False, True]))
        self.register_buffer("positions", torch.arange(9), persistent=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).bfloat16()).float()) * self.scale


class Operations(TorchDispatchMode):
    """The operations in the block, with their keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))


def contents(of: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in (*of.named_parameters(), *of.named_buffers())}


@pytest.fixture(params=[module.PIECE, 1024])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pieces that hold the whole module, or cut its tensors anywhere."""
    monkeypatch.setattr(module, "PIECE", request.param)
    return int(request.param)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all memory that was pinned."""
    sizes: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return sizes


@pytest.mark.usefixtures("piece", "pinned")
def test_each_stay_has_the_same_weights() -> None:
    mixed, x = Mixed(), torch.randn(2, 7)
    expected, result = contents(mixed), mixed(x)
    copied = Copied(mixed, CPU)
    for _ in range(3):
        copied.bring()
        copied.bring()
        found = contents(mixed)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        assert mixed.last.weight is mixed.first.weight
        assert torch.equal(mixed(x), result)
        copied.release()
        with pytest.raises(RuntimeError):
            mixed(x)


@pytest.mark.usefixtures("piece", "pinned")
def test_nothing_is_copied_back_and_nothing_stays() -> None:
    mixed = Mixed()
    copied = Copied(mixed, CPU, pins_from=0)
    with Operations() as coming:
        copied.bring()
    copies = [args for name, args in coming.seen if name in COPIES]
    assert copies and all(args[2] is True for args in copies)  # non_blocking
    with Operations() as leaving:
        copied.release()
    assert not [name for name, _ in leaving.seen if name in COPIES]
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in (*mixed.parameters(), *mixed.buffers()))


@pytest.mark.parametrize("pins_from", [1, 2])
def test_memory_is_pinned_once_in_pieces(piece: int, pinned: list[int], pins_from: int) -> None:
    copied, sizes = Copied(Mixed(), CPU, pins_from=pins_from), []
    for _ in range(4):
        copied.bring()
        copied.release()
        sizes.append(sum(pinned))
    whole = sum(piece.nbytes for piece in copied._pieces)
    assert sizes == [0] * (pins_from - 1) + [whole] * (5 - pins_from)
    assert max(pinned) <= piece


class Quantized(nn.Parameter):
    """A parameter that only its own class can move."""


@pytest.mark.parametrize(
    ("make", "device", "expected"),
    [
        (lambda tensor: nn.Parameter(tensor, False), "cuda", "Copied"),
        (lambda tensor: nn.Parameter(tensor, False), "cpu", "_Moved"),
        (lambda tensor: Quantized(tensor, False), "cuda", "_Moved"),
    ],
)
def test_only_plain_tensors_are_packed(make: Callable[[Tensor], nn.Parameter], device: str, expected: str) -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight = make(torch.ones(2, 2))
    assert type(keep_on_cpu(linear, torch.device(device))).__name__ == expected

"""Tests of the way of frames from a GPU to the CPU, on doubles: values, and the order of copies and computation."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from s2video.decoding import whole
from s2video.decoding.whole import on_cpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order."""
    log: list[str] = []
    events = iter(range(99))

    class Event:
        def __init__(self) -> None:
            self._number = next(events)

        def record(self) -> None:
            log.append(f"copy {self._number} is queued")

        def synchronize(self) -> None:
            log.append(f"copy {self._number} is waited for")

    def pin(tensor: Tensor) -> Tensor:
        log.append(f"{tensor.numel()} pinned")
        return tensor

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return log


def chunks(lengths: list[int], log: list[str]) -> Iterator[Tensor]:
    for number, length in enumerate(lengths):
        log.append(f"{number} is computed")
        yield torch.full((length, 2), float(number))


def test_a_chunk_is_copied_while_the_next_one_is_computed(log: list[str]) -> None:
    got = on_cpu(chunks([1, 4, 4], log), CUDA)
    kept = [next(got)]
    log.append("0 is read")
    kept += got  # all are kept, although the two buffers are used again
    assert [chunk.tolist() for chunk in kept] == [[[0.0] * 2], [[1.0] * 2] * 4, [[2.0] * 2] * 4]
    assert log == [
        "0 is computed",
        "2 pinned",
        "copy 0 is queued",
        "1 is computed",
        "8 pinned",
        "copy 1 is queued",
        "copy 0 is waited for",
        "0 is read",
        "2 is computed",
        "8 pinned",
        "copy 2 is queued",
        "copy 1 is waited for",
        "copy 2 is waited for",
    ]


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_all_ranks_take_equal_steps(log: list[str], device: torch.device, count: int) -> None:
    """The others have nothing to copy, but compute as far ahead as rank 0."""
    others: list[str] = []

    def computed() -> Iterator[None]:
        for number in range(count):
            others.append(f"{number} is computed")
            yield None

    main, other = on_cpu(chunks([1] * count, log), device), on_cpu(computed(), device)
    for number in range(count):
        assert next(main).tolist() == [[number] * 2] and next(other) is None
        assert others == [entry for entry in log if "computed" in entry]
    assert list(main) == list(other) == []


def test_a_very_large_chunk_is_not_pinned(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "_LARGEST_PINNED", 8)
    got = list(on_cpu(chunks([1, 2, 1], log), CUDA))
    assert [len(chunk) for chunk in got] == [1, 2, 1] and [float(chunk[0, 0]) for chunk in got] == [0, 1, 2]
    assert "4 pinned" not in log

"""Tests of the parts of ring attention without communication: merge, kernels with log-sum-exp, choice of kernel."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from s2video.engine.kernel_checks import check_kernels
from s2video.errors import InputError
from s2video.parallel.mesh import Axis
from s2video.parallel.ring import (
    KERNELS,
    Kernel,
    choose_kernel,
    merge_partial,
    partial_attention,
    plain_attention,
    ring_attention,
)

CPU = torch.device("cpu")
KERNEL = choose_kernel(CPU, torch.float32, 8)


def _qkv(queries: int, keys: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries * 31 + keys)
    query, key, value = (torch.randn(2, n, 3, 8, generator=generator) for n in (queries, keys, keys))
    return query * scale, key, value


def _reference(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.einsum("bqhd,bkhd->bqhk", query.double(), key.double()) / math.sqrt(query.shape[-1])
    return torch.einsum("bqhk,bkhd->bqhd", scores.softmax(-1), value.double()), scores.logsumexp(-1)


def _parts(query: Tensor, key: Tensor, value: Tensor, *cuts: int) -> list[tuple[Tensor, Tensor]]:
    bounds = [0, *cuts, key.shape[1]]
    return [partial_attention(query, key[:, a:b], value[:, a:b], KERNEL) for a, b in pairwise(bounds)]


def _assert_close(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance, rtol=1e-6)


def test_merged_parts_are_the_whole() -> None:
    """The merge is exact in any grouping and order."""
    inputs = _qkv(5, 17)
    a, b, c = _parts(*inputs, 4, 5)
    for merged in (
        merge_partial(*merge_partial(*a, *b), *c),
        merge_partial(*a, *merge_partial(*b, *c)),
        merge_partial(*merge_partial(*c, *a), *b),
    ):
        _assert_close(merged, _reference(*inputs))


def test_a_part_without_keys_changes_nothing() -> None:
    part, nothing = _parts(*_qkv(5, 9), 9)
    assert (nothing[1] == -torch.inf).all() and not nothing[0].any()
    for merged in (merge_partial(*part, *nothing), merge_partial(*nothing, *part)):
        assert torch.equal(merged[0], part[0]) and torch.equal(merged[1], part[1])
    both = merge_partial(*nothing, *nothing)
    assert torch.equal(both[0], nothing[0]) and torch.equal(both[1], nothing[1])


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_huge_logits_neither_overflow_nor_lose_the_total(scale: float) -> None:
    """float32 holds a log-sum-exp of 1e4 to 1e-3 only; the weights of a merge still add up to one."""
    query, key, value = _qkv(5, 17, scale)
    (out, lse), other = _parts(query, key, value, 8)
    merged, total = merge_partial(out, lse, *other)
    expected, expected_lse = _reference(query, key, value)
    torch.testing.assert_close(merged.double(), expected, atol=3e-7 * scale, rtol=0)
    torch.testing.assert_close(total.double(), expected_lse, atol=0, rtol=1e-6)
    ones = torch.ones_like(value)
    merged, _ = merge_partial(*(x for part in _parts(query, key, ones, 8) for x in part))
    torch.testing.assert_close(merged, torch.ones_like(merged), atol=1e-6, rtol=0)


def test_logits_beyond_the_exponential_give_a_step() -> None:
    """e^2000 is infinite in float32; a difference of 4000 between two parts is exact too."""
    out, block_out = torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    lse, block_lse = torch.tensor([[[2000.0, -2000.0]]]), torch.tensor([[[-2000.0, 2000.0]]])
    merged, total = merge_partial(out, lse, block_out, block_lse)
    assert torch.equal(merged[0, 0, :, 0], torch.tensor([0.0, 1.0]))
    assert torch.equal(total, torch.full_like(lse, 2000.0))


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.serves(CPU, torch.float32, 8)])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "lse_tolerance"), [(torch.float32, 2e-6, 2e-6), (torch.bfloat16, 2e-2, 2e-4)]
)
def test_kernels_return_output_and_log_sum_exp(
    kernel: Kernel, dtype: torch.dtype, tolerance: float, lse_tolerance: float
) -> None:
    inputs = [x.to(dtype) for x in _qkv(70, 33)]
    output, lse = kernel.run(*(x.transpose(1, 2) for x in inputs))
    assert output.dtype == dtype and lse.dtype == torch.float32
    expected, expected_lse = _reference(*inputs)
    torch.testing.assert_close(output.transpose(1, 2).double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse.transpose(1, 2).double(), expected_lse, atol=lse_tolerance, rtol=1e-6)


def test_the_plain_kernel_does_not_depend_on_its_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.transpose(1, 2) for x in _qkv(7, 5)]
    whole = plain_attention(*inputs)
    monkeypatch.setattr("s2video.parallel.ring._SCORES", 1)
    for a, b in zip(plain_attention(*inputs), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_the_best_kernel_is_taken_unless_one_is_named() -> None:
    assert choose_kernel(CPU, torch.float32, 12).name == "_native_flash"
    assert choose_kernel(CPU, torch.bfloat16, 12, "native").name == "_native_flash"
    assert choose_kernel(CPU, torch.float32, 12, "_native_math").run is plain_attention
    assert choose_kernel(torch.device("cuda"), torch.float32, 12).run is plain_attention


@pytest.mark.parametrize(("backend", "message"), [("xformers", "log-sum-exp"), ("sage", "does not support")])
def test_a_backend_that_cannot_serve_is_refused(backend: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_kernel(CPU, torch.float32, 12, backend)


def test_a_ring_of_one_is_attention() -> None:
    inputs = _qkv(6, 6)
    _assert_close(ring_attention(*inputs, [6], Axis("ring"), KERNEL), _reference(*inputs))


def wrong(kernel: Kernel, fault: str) -> Kernel:
    """Return a kernel with a fault of layout, as a GPU's could have."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        output, lse = kernel.run(query, key, value)
        if fault == "order of the log-sum-exp":
            return output, lse.flip(-1)
        if fault == "shape of the log-sum-exp":
            return output, lse.unsqueeze(-1)
        if fault == "base of the log-sum-exp":
            return output, lse / math.log(2)
        return output.flip(2), lse

    return Kernel(kernel.name, run, kernel.serves)


def test_the_self_test_runs_the_kernels_of_production() -> None:
    assert check_kernels(CPU) == (True, "_native_flash, _native_math")


@pytest.mark.parametrize(
    "fault",
    ["order of the log-sum-exp", "shape of the log-sum-exp", "base of the log-sum-exp", "order of the output"],
)
def test_the_self_test_finds_a_kernel_that_is_wrong(fault: str) -> None:
    faulty = wrong(next(kernel for kernel in KERNELS if kernel.serves(CPU, torch.float32, 128)), fault)
    passed, said = check_kernels(CPU, [faulty])
    assert not passed and said.startswith("_native_flash in torch.float32: error")

"""The part of the self-test that holds attention kernels against the definition of attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..parallel.attention import AttentionPlan, sharded_attention
from ..parallel.mesh import SequenceAxes
from ..parallel.ring import KERNELS, Kernel, plain_attention

# Highest error of outputs, which have a deviation of 1 / 15, and of log-sum-exps, which are about 7 and differ by 0.1.
ERRORS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 1e-3), torch.float16: (1e-3, 1e-3)}
QUERIES, KEYS, HEADS, HEAD_DIM = 300, 517, 2, 128  # the head dimension is that of all published models


def check_kernels(device: torch.device, kernels: Sequence[Kernel] = KERNELS) -> tuple[bool, str]:
    """Return whether all kernels that serve this device are right, and their names, or what is wrong.

    Each kernel's output and log-sum-exp are compared, for fewer queries than keys and with the strides of production;
    then the default without a ring.
    """
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(3, 1, KEYS, HEADS, HEAD_DIM, generator=generator).to(device)
    passed = []
    for dtype, (most, most_lse) in ERRORS.items():
        query, key, value = made.to(dtype)
        expected, expected_lse = _by_definition(query, key, value)
        inputs = [x.transpose(1, 2) for x in (query[:, :QUERIES], key, value)]
        for name, run in {k.name: k.run for k in kernels if k.serves(device, dtype, HEAD_DIM)}.items():
            output, lse = run(*inputs)
            error = _largest(output.transpose(1, 2), expected[:, :QUERIES])
            error_lse = _largest(lse, expected_lse[..., :QUERIES])
            if not (error <= most and error_lse <= most_lse):
                return False, f"{name} in {dtype}: error {error:.1e}, of log-sum-exps {error_lse:.1e}"
            passed.append(name)
        output = sharded_attention(query, key, value, AttentionPlan.even(SequenceAxes(), KEYS), backend=None)
        if not (error := _largest(output, expected)) <= most:
            return False, f"the default in {dtype}: error {error:.1e}"
    return True, ", ".join(dict.fromkeys(passed))


def _by_definition(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse = plain_attention(*(x.double().transpose(1, 2) for x in (query, key, value)))
    return output.transpose(1, 2), lse


def _largest(got: Tensor, expected: Tensor) -> float:
    return torch.inf if got.shape != expected.shape else (got - expected).abs().max().item()

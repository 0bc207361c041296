"""Tests of attention backends: on this CPU those that run, by doubles of the libraries those that need a GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_table import table
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from tiny import PROMPT, tiny_config
from torch import Tensor

import s2video
from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.parallel.attention import AttentionPlan, sharded_attention, sharded_joint_attention
from s2video.parallel.backends import LIBRARIES_WITH_LSE, NEEDS, check_here
from s2video.parallel.mesh import SequenceAxes
from s2video.parallel.ring import LIBRARY_KERNELS, check_backend, choose_kernel, partial_attention, plain_attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ON_CPU = [name for name, need in NEEDS.items() if not need.gpu]
ROOT = Path(s2video.__file__).parents[1]


def random_attention() -> tuple[Tensor, Tensor, Tensor]:
    """Query [B, S_q, H, D], and key and value with more tokens."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 3, 16, generator=generator) for n in (5, 9, 9))
    return query, key, value


def expected_of(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse = plain_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    return output.transpose(1, 2), lse.transpose(1, 2)


@pytest.fixture
def doubles() -> Iterator[list[str]]:
    """Libraries that need a GPU, replaced by ones that compute by the definition in the libraries' layout."""
    calls: list[str] = []
    before = dict(_AttentionBackendRegistry._backends)

    def double(name: str) -> Any:
        def attend(query: Tensor, key: Tensor, value: Tensor, return_lse: bool = False, **rest: Any) -> Any:
            calls.append(name)
            assert all(x.is_contiguous() for x in (query, key, value)) and rest.get("attn_mask") is None
            output, lse = plain_attention(*(x.transpose(1, 2) for x in (query, key, value)))
            return (output.transpose(1, 2), lse) if return_lse else output.transpose(1, 2)

        return attend

    names = [name for name, need in NEEDS.items() if need.gpu]
    _AttentionBackendRegistry._backends.update({AttentionBackendName(name): double(name) for name in names})
    yield calls
    _AttentionBackendRegistry._backends.clear()
    _AttentionBackendRegistry._backends.update(before)


@pytest.mark.parametrize("name", NEEDS)
def test_one_rank_and_ulysses(doubles: list[str], name: str) -> None:
    """Both call a backend with whole sequences and without a mask, in joint attention too."""
    query, key, value = random_attention()
    query = query[:, :1].expand(-1, 9, -1, -1).contiguous()
    expected = expected_of(query, key, value)[0]
    plan = AttentionPlan.even(SequenceAxes(), 9)
    torch.testing.assert_close(sharded_attention(query, key, value, plan, backend=name), expected)
    video, text = ([x[:, part].contiguous() for x in (query, key, value)] for part in (slice(6), slice(6, 9)))
    joint = sharded_joint_attention(video, text, AttentionPlan.even(SequenceAxes(), 6), backend=name)
    torch.testing.assert_close(joint, expected)
    assert set(doubles) <= {name}


@pytest.mark.parametrize("name", NEEDS)
def test_a_ring(doubles: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends with a log-sum-exp give the partial results that are merged; the others are refused."""
    if not NEEDS[name].lse:
        with pytest.raises(InputError, match="kernels that return a log-sum-exp"):
            check_backend(name)
        return
    check_backend(name)
    if name in ON_CPU:
        kernel = choose_kernel(CPU, torch.float32, 16, name)
    else:
        with pytest.raises(InputError, match=r"does not support torch\.float32"):
            choose_kernel(CPU, torch.float32, 16, name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        kernel = choose_kernel(CUDA, torch.bfloat16, 128, name)
        assert kernel.name == name
        if NEEDS[name].widest < 256:
            with pytest.raises(InputError, match="256 channels per head"):
                choose_kernel(CUDA, torch.bfloat16, 256, name)
        if name not in LIBRARIES_WITH_LSE:
            return  # torch's own CUDA kernels have no double
    for got, wanted in zip(
        partial_attention(*random_attention(), kernel), expected_of(*random_attention()), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_libraries_are_never_chosen_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    names = {kernel.name for kernel in LIBRARY_KERNELS}
    for backend in (None, "native"):
        assert choose_kernel(CUDA, torch.bfloat16, 128, backend).name not in names


def test_flex_makes_the_same_video(tiny_checkpoint: Path) -> None:
    config = tiny_config(tiny_checkpoint, window=(0.0, 1.0)).patched({"sampling.num_inference_steps": 2})
    plain = Engine(config, progress="none").sample([PROMPT], [3])
    flex = Engine(config.patched({"model.attention_backend": "flex"}), progress="none").sample([PROMPT], [3])
    torch.testing.assert_close(flex, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "message"),
    [
        ("flash", "cpu", torch.bfloat16, "flash needs a GPU, got a CPU"),
        ("sage", "cuda", torch.float32, "sage needs model.dtype bfloat16 or float16, got float32"),
        ("sage", "cuda", torch.bfloat16, "Sage Attention backend 'sage' is not usable .* install `sageattention"),
        ("_flash_3", "cuda", torch.bfloat16, "Flash Attention 3 backend .* is not usable"),
        ("_native_npu", "cpu", torch.float32, "expected a backend for CPUs or CUDA"),
        ("fast", "cpu", torch.float32, "expected one of flash, .*, got 'fast'"),
    ],
)
def test_what_this_machine_lacks_is_said_first(backend: str, device: str, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_here(backend, device, dtype)


def test_an_engine_asks_before_it_loads(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="sage needs a GPU, got a CPU"):
        Engine(tiny_config(tiny_checkpoint).patched({"model.attention_backend": "sage"}), progress="none")


def test_the_table_in_the_documents_is_current() -> None:
    assert table() in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert set(NEEDS) <= {kind.value for kind in attention_dispatch.AttentionBackendName}

"""Tests of the choice of attention kernels: no model's choice reaches another model, and each GPU has its default."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from tiny import build_transformer
from torch import Tensor

from s2video.config.run import RunConfig
from s2video.errors import InputError
from s2video.models.base import Conditioning
from s2video.models.limits import CheckpointInfo, check_request
from s2video.models.wan.blocks import WanBlockModel
from s2video.parallel import ring
from s2video.parallel.attention import AttentionPlan, attention_kernel, sharded_attention
from s2video.parallel.mesh import Axis, Mesh, SequenceAxes
from s2video.parallel.ring import KERNELS, choose_kernel, named_backend, plain_attention
from s2video.sampling.forward import predict

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ALONE, RING = Axis("ring"), Axis("ring", 2)


@contextmanager
def counted_backends() -> Iterator[Counter[str]]:
    """Count the calls of each of diffusers' backends."""
    calls: Counter[str] = Counter()
    before = dict(_AttentionBackendRegistry._backends)

    def counted(name: AttentionBackendName) -> Any:
        def run(*arguments: Any, **more: Any) -> Any:
            calls[name.value] += 1
            return before[name](*arguments, **more)

        return run

    _AttentionBackendRegistry._backends.update({name: counted(name) for name in before})
    try:
        yield calls
    finally:
        _AttentionBackendRegistry._backends.update(before)


def backends_of(model: WanBlockModel) -> set[str]:
    """Return the backends that self-attention and attention to text use in one prediction."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 2, 8, 8, generator=generator)
    text = torch.randn(1, 8, model.transformer.config.text_dim, generator=generator)
    with counted_backends() as calls, torch.no_grad():
        predict(model, latents, torch.tensor([500]), mesh=Mesh(CPU), cond=Conditioning(text), masks=[(2,)])
    return set(calls)


def test_the_backend_of_one_engine_does_not_reach_the_next() -> None:
    before = _AttentionBackendRegistry.get_active_backend()
    with_math = WanBlockModel(build_transformer(), attention_backend="_native_math")
    default = WanBlockModel(build_transformer())
    assert backends_of(with_math) == {"_native_math"}
    assert backends_of(default) == {"native"}
    assert _AttentionBackendRegistry.get_active_backend() == before


def test_the_default_of_another_pipeline_in_the_process_does_not_reach_ours() -> None:
    default = WanBlockModel(build_transformer())
    before = _AttentionBackendRegistry._active_backend
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName._NATIVE_MATH)
    try:
        assert backends_of(default) == {"native"}
    finally:
        _AttentionBackendRegistry.set_active_backend(before)


@pytest.mark.parametrize(
    ("capability", "cudnn", "expected"),
    [
        ((9, 0), 92100, "_native_cudnn"),
        ((10, 0), 92100, "_native_cudnn"),
        ((9, 0), 91002, "native"),
        ((9, 0), None, "native"),
        ((8, 0), 92100, "native"),
        ((12, 0), 92100, "native"),
    ],
)
def test_hopper_takes_cudnn_in_both_paths(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cudnn: int | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    tensors = (CUDA, torch.bfloat16, 128)
    assert attention_kernel(None, *tensors, ALONE) == expected
    in_ring = "_native_flash" if expected == "native" else expected
    assert attention_kernel(None, *tensors, RING) == choose_kernel(*tensors).name == in_ring
    assert attention_kernel("_native_flash", *tensors, ALONE) == "_native_flash"  # a named one stays
    assert attention_kernel("native", *tensors, ALONE) == "native"
    assert attention_kernel(None, CUDA, torch.float32, 128, ALONE) == "native"
    assert attention_kernel(None, CUDA, torch.bfloat16, 256, ALONE) == "native"
    assert choose_kernel(*tensors, "_native_cudnn").name == "_native_cudnn"


def cudnn_that_needs_contiguous_tensors(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> tuple[Tensor, ...]:
    if not all(x.is_contiguous() for x in (query, key, value)):
        return torch.full_like(query, 9.0), query.new_zeros(query.shape[:-1])
    output, lse = plain_attention(query, key, value)
    return output, lse.unsqueeze(-1)


@pytest.mark.parametrize("backend", [None, "_native_cudnn"])
def test_cudnn_gets_contiguous_tensors(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> None:
    """With other strides it can return wrong values; ours come from a transpose."""
    cudnn = replace(KERNELS[0], serves=lambda *tensors: True)
    monkeypatch.setattr(ring, "KERNELS", (cudnn, *KERNELS[1:]))
    monkeypatch.setattr(
        torch.ops.aten, "_scaled_dot_product_cudnn_attention", cudnn_that_needs_contiguous_tensors, raising=False
    )
    query, key, value = torch.randn(3, 2, 7, 3, 8, generator=torch.Generator().manual_seed(0))
    expected = plain_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    kernel = choose_kernel(CPU, torch.float32, 8, backend)
    for got, wanted in zip(ring.partial_attention(query, key, value, kernel), expected, strict=True):
        torch.testing.assert_close(got, wanted.transpose(1, 2))
    if backend is None:  # without a ring, too, and not through diffusers
        with counted_backends() as calls:
            got = sharded_attention(query, key, value, AttentionPlan.even(SequenceAxes(), 7), backend=None)
        torch.testing.assert_close(got, expected[0].transpose(1, 2))
        assert not calls


def test_the_environment_names_a_backend_like_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_backend(None) is None
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "xformers")
    assert (named_backend(None), named_backend("native")) == ("xformers", "native")
    config = RunConfig.model_validate({"parallel": {"ring": 2}})
    checkpoint = CheckpointInfo(
        num_blocks=6, patch_size=(1, 2, 2), max_positions=64, spatial_factor=8, temporal_factor=4
    )
    with pytest.raises(InputError, match="DIFFUSERS_ATTN_BACKEND"):  # a ring would have taken another one in silence
        check_request(config, checkpoint, world_size=2)

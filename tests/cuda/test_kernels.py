"""Attention kernels and offloaded weights on a pretended GPU of compute capability 9.0."""

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fake_cuda import cases
from fake_cuda.cases import ALLOWED_SYNCS, guided_steps, image_conditioning, unexpected
from fake_cuda.device import CALLS, fake_gpu
from fake_cuda.published import published_engine
from fake_cuda.ranks import fake_mesh
from fake_cuda.watchdog import place
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2video.models.base import ImageConditioning
from s2video.parallel import offload

aten = torch.ops.aten
KERNELS = {
    aten._scaled_dot_product_cudnn_attention: "cuDNN",
    aten._scaled_dot_product_flash_attention: "flash",
    aten._scaled_dot_product_efficient_attention: "efficient",
}


class Kernels(TorchDispatchMode):
    """Counts attention kernels by name and by where they are called, and checks what cuDNN's gets."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = KERNELS.get(func.overloadpacket)
        if name is not None:
            self.calls[name, place()] += 1
        if name == "cuDNN":
            assert all(x.is_contiguous() for x in args[:3]), [x.stride() for x in args[:3]]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("model", "mesh"), [("wan2.1-t2v-1.3b-480p", "ulysses"), ("hunyuanvideo-720p", "ring")])
def test_hopper_runs_cudnn_on_the_video(model: str, mesh: str) -> None:
    """cuDNN's kernel is called directly: diffusers would switch all other kernels off for the whole process."""
    with (
        patch.object(torch.backends.cudnn, "version", lambda: 92100),
        fake_mesh(1, **{mesh: 2}) as layout,
        fake_gpu() as watchdog,
        published_engine(model, layout) as engine,
    ):
        assert engine.attention_kernel == "_native_cudnn"
        steps = guided_steps(engine, 1)
        with Kernels() as kernels:
            steps()
        assert not watchdog.faults, watchdog.faults
        assert kernels.calls["cuDNN", "parallel/ring.py:_cuda_cudnn"] > 0
        assert {name for name, where in kernels.calls if "parallel/" in where} == {"cuDNN"}


def test_offloaded_experts_take_turns_without_a_copy_back() -> None:
    with (
        patch.object(offload, "_PLAIN", (torch.nn.Parameter, torch.Tensor, FakeTensor)),
        fake_mesh() as mesh,
        fake_gpu() as watchdog,
        published_engine("wan2.2-t2v-a14b", mesh, **{"model.offload_experts": True}) as engine,
    ):
        sizes = []
        CALLS.clear()
        watchdog.clear()
        for turn in (0, 0, 1, 0):
            expert = engine._experts.take_turn(turn)
            assert {p.device.type for p in expert.module.parameters()} == {"cuda"}
            sizes.append(watchdog.live)
        assert len(set(sizes)) == 1 and watchdog.peak == sizes[0]  # never two at once
        assert not unexpected(watchdog.syncs, ALLOWED_SYNCS), watchdog.syncs
        assert not watchdog.uploads, watchdog.uploads  # from pinned memory only
        assert not CALLS, CALLS  # no stream or event is needed: all is in the order of one stream


def test_equal_times_are_kept_once() -> None:
    """Without an image, Wan 2.2 TI2V has the same time for each of 27 280 tokens: 1 GB of modulation a branch."""
    peaks = []
    for images in (image_conditioning, lambda checkpoint, latents: ImageConditioning()):
        with (
            patch.object(cases, "image_conditioning", images),
            fake_mesh() as mesh,
            fake_gpu() as watchdog,
            published_engine("wan2.2-ti2v-5b", mesh) as engine,
        ):
            steps = guided_steps(engine, 1)
            watchdog.clear()
            steps()
            assert not watchdog.faults, watchdog.faults
            peaks.append(watchdog.peak)
    assert peaks[1] < peaks[0] - 1e9

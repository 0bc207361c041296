"""Tests of tiles' blending and masks: those of diffusers to the bit, in few operations."""

from collections import Counter
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2video.decoding.tiled import blend, causal_mask

# diffusers' methods do not use the VAE itself
OF_DIFFUSERS = {
    -1: AutoencoderKLHunyuanVideo.blend_h,
    -2: AutoencoderKLHunyuanVideo.blend_v,
    -3: AutoencoderKLHunyuanVideo.blend_t,
}


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def tiles(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, *shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", OF_DIFFUSERS)
@pytest.mark.parametrize("extent", [0, 1, 7, 11, 64])
def test_blending_is_that_of_diffusers(dtype: torch.dtype, dim: int, extent: int) -> None:
    before, tile = tiles(dtype, (13, 13, 13), (13, 13, 13))
    shorter = tile.narrow(dim, 0, 9).clone()  # the last tile can be smaller than what is blended
    for after in (tile, shorter):
        expected = OF_DIFFUSERS[dim](None, before.clone(), after.clone(), extent)
        blend(before, after, extent, dim=dim)
        assert torch.equal(after, expected)


def test_blending_takes_as_many_operations_for_any_extent() -> None:
    before, tile = tiles(torch.float32, (2, 64, 64), (2, 64, 64))
    found = []
    for extent in (2, 64):
        with Counted() as counted:
            blend(before, tile, extent, dim=-2)
        found.append(counted.calls)
    assert found[0] == found[1] and found[0].total() < 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("batch", [None, 2])
def test_the_mask_is_that_of_diffusers(dtype: torch.dtype, batch: int | None) -> None:
    arguments = (3, 5, dtype, torch.device("cpu"), batch)
    mask = causal_mask(*arguments)
    expected = HunyuanVideo15AttnBlock.prepare_causal_attention_mask(*arguments)
    assert mask.dtype == expected.dtype and torch.equal(mask, expected)

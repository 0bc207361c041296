import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

from s2video.guidance.equations import Predictions, combine

SHAPE = (2, 4, 3, 5, 5)


@pytest.fixture
def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(5)]


def test_equation_1_to_the_bit(tensors: list[Tensor]) -> None:
    cond, uncond, sub, *_ = tensors
    expected = uncond + 5.0 * (cond - uncond)
    assert torch.equal(combine(Predictions(cond, uncond), cfg_scale=5.0, s2_scale=0.25), expected)
    assert torch.equal(combine(Predictions(cond, uncond, (sub,)), cfg_scale=5.0, s2_scale=0.0), expected)


def test_equation_4(tensors: list[Tensor]) -> None:
    cond, uncond, sub, *_ = tensors
    got = combine(Predictions(cond, uncond, (sub,)), cfg_scale=5.0, s2_scale=0.25)
    expected = uncond.double() + 5.0 * (cond.double() - uncond.double()) - 0.25 * (sub.double() - cond.double())
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_equation_3_is_the_mean_over_masks(tensors: list[Tensor]) -> None:
    cond, uncond, *subs = tensors
    got = combine(Predictions(cond, uncond, tuple(subs)), cfg_scale=5.0, s2_scale=0.25)
    expected = uncond + 5.0 * (cond - uncond) - 0.25 * (torch.stack(subs).mean(0) - cond)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_original_form_changes_the_scale(tensors: list[Tensor]) -> None:
    cond, uncond, sub, *_ = tensors
    predictions = Predictions(cond, uncond, (sub,))
    got = combine(predictions, cfg_scale=5.0, s2_scale=0.25, form="original")
    torch.testing.assert_close(got, uncond + 5.0 * (cond - uncond) - 0.25 * sub, atol=1e-5, rtol=1e-5)
    same = Predictions(cond, cond, (cond,))  # three equal predictions need no correction
    torch.testing.assert_close(combine(same, cfg_scale=5.0, s2_scale=0.25), cond)
    torch.testing.assert_close(combine(same, cfg_scale=5.0, s2_scale=0.25, form="original"), 0.75 * cond)


def test_without_uncond(tensors: list[Tensor]) -> None:
    cond, _, sub, *_ = tensors
    got = combine(Predictions(cond, None, (sub,)), cfg_scale=1.0, s2_scale=0.25)
    torch.testing.assert_close(got, cond - 0.25 * (sub - cond))
    assert torch.equal(combine(Predictions(cond), cfg_scale=1.0, s2_scale=0.25), cond)


def test_rescale_is_diffusers(tensors: list[Tensor]) -> None:
    cond, uncond, *_ = tensors
    got = combine(Predictions(cond, uncond), cfg_scale=5.0, s2_scale=0.25, rescale=0.7)
    assert torch.equal(got, rescale_noise_cfg(uncond + 5.0 * (cond - uncond), cond, guidance_rescale=0.7))


def test_float32_inside(tensors: list[Tensor]) -> None:
    cond, uncond, sub = (x.bfloat16() for x in tensors[:3])
    got = combine(Predictions(cond, uncond, (sub,)), cfg_scale=5.0, s2_scale=0.25)
    wide = combine(Predictions(cond.float(), uncond.float(), (sub.float(),)), cfg_scale=5.0, s2_scale=0.25)
    assert got.dtype == torch.float32
    assert torch.equal(got, wide)


def test_inputs_stay_as_they_are(tensors: list[Tensor]) -> None:
    cond, uncond, sub, *_ = tensors
    before = [x.clone() for x in (cond, uncond, sub)]
    combine(Predictions(cond, uncond, (sub,)), cfg_scale=5.0, s2_scale=0.25, rescale=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (cond, uncond, sub), strict=True))

import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

from s2video.guidance.equations import Predictions, combine, mean_deviation, scale_of_push

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


# ω by its effect


def test_a_push_is_a_share_of_cond(tensors: list[Tensor]) -> None:
    """|D − CFG| / |cond| is the push in every sample, for one draw and for several."""
    cond, uncond, *subs = tensors
    for count in (1, 3):
        predictions = Predictions(cond, uncond, tuple(subs[:count]))
        scale = scale_of_push(predictions, 0.3)
        assert scale.shape == (2,) and scale.dtype == torch.float32
        guided = combine(predictions, cfg_scale=5.0, s2_scale=scale)
        moved = guided - combine(Predictions(cond, uncond), cfg_scale=5.0, s2_scale=0.0)
        ratio = moved.flatten(1).norm(dim=1) / cond.flatten(1).norm(dim=1)
        torch.testing.assert_close(ratio, torch.full((2,), 0.3), atol=1e-4, rtol=0)
        towards = (moved * mean_deviation(predictions)).flatten(1).sum(dim=1)
        assert (towards < 0).all(), "away from sub"


def test_a_sample_s_scale_does_not_depend_on_the_others(tensors: list[Tensor]) -> None:
    cond, _, sub, *_ = tensors
    both = scale_of_push(Predictions(cond, None, (sub,)), 0.1)
    alone = [scale_of_push(Predictions(cond[i : i + 1], None, (sub[i : i + 1],)), 0.1) for i in range(2)]
    assert torch.equal(both, torch.cat(alone))
    assert both[0] != both[1]


def test_nothing_to_push_along(tensors: list[Tensor]) -> None:
    """If sub equals cond, ω is 0, and the result is CFG; so for one sample of two."""
    cond, uncond, sub, *_ = tensors
    sub = torch.cat((cond[:1], sub[1:]))
    scale = scale_of_push(Predictions(cond, uncond, (sub,)), 0.1)
    assert scale[0] == 0 and scale[1] > 0
    guided = combine(Predictions(cond, uncond, (sub,)), cfg_scale=5.0, s2_scale=scale)
    assert torch.equal(guided[0], combine(Predictions(cond, uncond), cfg_scale=5.0, s2_scale=0.0)[0])
    zero = torch.zeros_like(cond)
    assert torch.isfinite(scale_of_push(Predictions(zero, None, (sub,)), 0.1)).all()


def test_scales_do_not_depend_on_threads() -> None:
    """Ranks with other numbers of threads must get the same bits; a plain sum splits large tensors by threads."""
    generator = torch.Generator().manual_seed(1)
    cond, sub = (torch.randn(1, 16, 9, 61, 53, generator=generator) for _ in range(2))
    threads, scales = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            scales.append(scale_of_push(Predictions(cond, None, (sub,)), 0.1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(scales[0], scales[1]) and torch.equal(scales[0], scales[2])
    expected = 0.1 * cond.double().norm() / (sub.double() - cond.double()).norm()
    torch.testing.assert_close(scales[0].double(), expected.view(1), atol=0, rtol=1e-6)

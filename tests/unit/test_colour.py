"""Tests of the colour conversion: matrix, depth, siting, rounding."""

import numpy as np
import pytest
import torch
from video_helpers import BLUE, RED, bt709

from s2video.media.colour import linear_light, pixels


def picture(*rows: list[tuple[float, float, float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_ten_bits_are_four_times_eight_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand(1, 500, 3, generator=generator)
    codes = pixels(frame, "yuv422p10le")
    assert codes.dtype == np.dtype("<u2")
    exact = 4 * np.array([bt709(colour)[0] for colour in frame[0].double().tolist()])
    assert np.abs(codes[:500] - exact).max() < 0.501
    assert np.abs(4 * np.round(exact / 4) - exact).max() > 1.9  # through 8 bits
    assert np.abs(np.floor(exact) - exact).max() > 0.9  # by truncation


def test_half_columns_keep_all_rows() -> None:
    codes = pixels(picture([RED] * 4, [BLUE] * 4), "yuv422p10le")
    assert codes.size == 8 + 4 + 4
    cb = codes[8:12].reshape(2, 2)
    red, blue = (round(4 * bt709(colour)[1]) for colour in (RED, BLUE))
    assert cb.tolist() == [[red, red], [blue, blue]]


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le"])
def test_colour_is_sited_on_the_left_column_at_ten_bits_too(pixel_format: str) -> None:
    codes = pixels(picture(*[[RED] * 4 + [BLUE] * 4] * 2), pixel_format)
    cb = codes[16 : 16 + 4]
    left, right = 4 * bt709(RED)[1], 4 * bt709(BLUE)[1]
    assert cb.tolist() == [round(left), round(left), round(0.25 * left + 0.75 * right), round(right)]


def test_half_rows_lie_between_two() -> None:
    codes = pixels(picture([RED] * 2, [BLUE] * 2), "yuv420p10le")
    assert codes.tolist()[4] == round(2 * (bt709(RED)[1] + bt709(BLUE)[1]))


def test_sixteen_bits() -> None:
    values = torch.linspace(0, 1, 3000)
    codes = pixels(values.reshape(10, 100, 3), "rgb48le")
    assert codes.dtype == np.dtype("<u2") and codes.shape == (10, 100, 3)
    assert np.abs(codes.reshape(-1) - 65535 * values.double().numpy()).max() < 0.51
    assert (codes.min(), codes.max()) == (0, 65535)


def test_linear_light_is_that_of_an_srgb_display() -> None:
    # IEC 61966-2-1; 0.5 is its textbook value, and both pieces meet at 0.04045
    values = torch.tensor([0.0, 0.02, 0.04045, 0.040451, 0.5, 1.0])
    expected = torch.tensor([0.0, 0.02 / 12.92, 0.0031308, 0.0031308, 0.2140411, 1.0])
    torch.testing.assert_close(linear_light(values), expected, atol=1e-6, rtol=1e-4)


def test_half_floats_are_the_nearest() -> None:
    frame = torch.linspace(0, 1, 3000).reshape(10, 100, 3)
    halves = pixels(frame, "rgbh")
    assert halves.dtype == np.float16 and halves.shape == (10, 100, 3)
    np.testing.assert_array_equal(halves, linear_light(frame.double()).numpy().astype(np.float16))


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p10le", "rgb48le", "rgbh"])
def test_values_outside_are_clamped(pixel_format: str) -> None:
    wild = picture([(1.5, -0.5, 2.0)] * 2, [(-3, 9, 0.5)] * 2)
    np.testing.assert_array_equal(pixels(wild, pixel_format), pixels(wild.clamp(0, 1), pixel_format))

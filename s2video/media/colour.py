"""Conversion of RGB to Y'CbCr codes, 16-bit codes, or half floats of linear light. Each value is rounded once.

The primaries are those of BT.709. Values in [0, 1] are display-encoded. Knows no files.

H, W: height and width in pixels.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

KR, KB = 0.2126, 0.0722  # BT.709: weights of red and blue in luma

# ffmpeg's pixel format -> bits, and whether chroma has half the rows too.
_YCBCR = {"yuv420p": (8, True), "yuv420p10le": (10, True), "yuv422p10le": (10, False)}


def pixels(frame: Tensor, pixel_format: str) -> NDArray[Any]:
    """Convert a frame [H, W, 3], RGB in float32, to this format (see `Format.pixel_format`), in the encoder's layout.

    Values outside [0, 1] are clamped.
    """
    frame = frame.clamp(0, 1).contiguous()
    if pixel_format == "rgbh":
        return linear_light(frame).to(device="cpu", dtype=torch.float16).numpy()
    if pixel_format == "rgb48le":
        return _codes(65535 * frame, 16)
    bits, halves_rows = _YCBCR[pixel_format]
    return _codes(_ycbcr(frame, halves_rows=halves_rows) * 2 ** (bits - 8), bits)


def linear_light(frame: Tensor) -> Tensor:
    """Convert sRGB values to the linear light that a display emits, in [0, 1] (IEC 61966-2-1)."""
    return torch.where(frame <= 0.04045, frame / 12.92, ((frame + 0.055) / 1.055) ** 2.4)


def _ycbcr(frame: Tensor, *, halves_rows: bool) -> Tensor:
    """Return the planes Y', Cb, Cr, concatenated, by BT.709 in limited range, in units of an 8-bit code, not rounded.

    swscale is not exact enough: from 16-bit RGB it takes white as 255.996 / 255 and adds a dither pattern (measured on
    ffmpeg 9.0: luma 0.4 too bright on average, up to 1.7 off); from 8-bit RGB it would round twice.
    """
    red, green, blue = frame.unbind(-1)
    luma = KR * red + (1 - KR - KB) * green + KB * blue
    # [2, H, W], in [-0.5, 0.5].
    chroma = torch.stack([(blue - luma) / (2 * (1 - KB)), (red - luma) / (2 * (1 - KR))])
    # Halve the resolution. Samples are sited at these formats' defaults: on every second column, and between two rows
    # if the rows are halved too.
    if halves_rows:
        chroma = (chroma[:, 0::2] + chroma[:, 1::2]) / 2
    before = F.pad(chroma, (1, 0), mode="replicate")[..., :-1:2]
    halved = (before + 2 * chroma[..., 0::2] + chroma[..., 1::2]) / 4
    return torch.cat([(16 + 219 * luma).flatten(), (128 + 224 * halved).flatten()])


def _codes(values: Tensor, bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if bits == 8:
        return values.round().to(device="cpu", dtype=torch.uint8).numpy()
    return values.round().to(device="cpu", dtype=torch.int32).numpy().astype("<u2")

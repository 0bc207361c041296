"""A picture of what the push does: the same noise and classes in every row, more push from row to row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from .data import CLASSES, HIGH, LOW
from .guided import BATCH, Method, sample
from .transformer import DigitTransformer

SCALE, GAP, LABEL, NUMBERS, HEADING = 3, 2, 132, 150, 30  # px, but for SCALE


def picture(network: DigitTransformer, records: Sequence[dict[str, Any]], scales: Sequence[float], noise: int) -> Image:
    """Return a panel for each λ of `scales`, with a row for each push that the screening measured.

    Args:
        records: those of the screening, which give each row its ω, distance, and share of right classes.
        noise: the screening's noise seed; its first ten samples are shown, one of each class.
    """
    panels = [_panel(network, [r for r in records if r["cfg_scale"] == scale], noise) for scale in scales]
    sheet = Image.new("L", (max(panel.width for panel in panels), sum(panel.height for panel in panels)), 255)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)  # it has Greek letters


def _panel(network: DigitTransformer, records: Sequence[dict[str, Any]], noise: int) -> Image:
    cell = 16 * SCALE + GAP
    panel = Image.new("L", (LABEL + CLASSES * cell + NUMBERS, HEADING + len(records) * cell + GAP), 255)
    draw, font = ImageDraw.Draw(panel), _font(13)
    scale = records[0]["cfg_scale"]
    heading = "without CFG (λ = 1)" if scale == 1 else f"with CFG, λ = {scale:g}"
    draw.text((LABEL, HEADING - 8), heading, 0, _font(15), anchor="lb")
    for number, record in enumerate(sorted(records, key=lambda record: record["push"])):
        top = HEADING + number * cell
        method = Method(cfg_scale=scale, push=record["push"])
        for column, image in enumerate(sample(network, method, count=BATCH, noise_seed=noise).images[:CLASSES]):
            pixels = ((image[0] - LOW) / (HIGH - LOW) * 255).round().clamp(0, 255).numpy().astype(np.uint8)
            panel.paste(
                Image.fromarray(pixels).resize((16 * SCALE,) * 2, Image.Resampling.BICUBIC),
                (LABEL + column * cell, top),
            )
        middle = top + cell // 2
        draw.text((4, middle), f"ω = {record['omega']:.2f}" if record["push"] else "no S²", 0, font, anchor="lm")
        numbers = f"distance {record['frechet']:.1f}, {record['accuracy']:.0%}"
        draw.text((LABEL + CLASSES * cell + 8, middle), numbers, 0, font, anchor="lm")
    return panel

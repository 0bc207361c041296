"""A contact sheet: for each caption a few frames of every method below each other, to be looked at by a person.

Knows neither the world nor the models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tools_extra import tools_extra
from torch import Tensor

from s2video.system.files import atomic_path

with tools_extra():
    import matplotlib

COLUMNS = 3
ZOOM = 2
GAP, LINE, LABEL_WIDTH, NOTE_HEIGHT, SEAM = 12, 17, 40, 17, 2
PAPER, INK, FAINT = (250, 250, 248), (20, 20, 20), (150, 40, 30)


@dataclass(frozen=True)
class Strip:
    """Frames of one clip, [F, H, W, 3] in [0, 1], the method's name and a remark ("" for none)."""

    label: str
    note: str
    frames: Tensor


@dataclass(frozen=True)
class Cell:
    caption: str
    strips: tuple[Strip, ...]


def write_sheet(cells: Sequence[Cell], path: Path) -> None:
    """Write a PNG of all cells, row by row. Every strip has frames of the same number and size.

    Raises:
        InputError: if the file cannot be written there.
    """
    count, height, width, _ = cells[0].strips[0].frames.shape
    strip_width, strip_height = count * (width * ZOOM + SEAM), height * ZOOM + NOTE_HEIGHT
    cell_width = LABEL_WIDTH + strip_width
    # Pillow's own font has no ², and matplotlib's lies in its package.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size=12)
    captions = [_wrap(cell.caption, font, cell_width) for cell in cells]
    text_height = LINE * max(map(len, captions)) + 4
    cell_height = text_height + max(len(cell.strips) for cell in cells) * strip_height
    rows = -(-len(cells) // COLUMNS)
    size = (GAP + COLUMNS * (cell_width + GAP), GAP + rows * (cell_height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (cell, lines) in enumerate(zip(cells, captions, strict=True)):
        left = GAP + index % COLUMNS * (cell_width + GAP)
        top = GAP + index // COLUMNS * (cell_height + GAP)
        draw.text((left, top), "\n".join(lines), INK, font)
        for row, strip in enumerate(cell.strips):
            y = top + text_height + row * strip_height
            draw.text((left, y + height * ZOOM // 2 - LINE // 2), strip.label, INK, font)
            for column, frame in enumerate(strip.frames):
                pixels = (frame.clamp(0, 1) * 255).round().byte().cpu().numpy()
                image = Image.fromarray(pixels).resize((width * ZOOM, height * ZOOM), Image.Resampling.NEAREST)
                sheet.paste(image, (left + LABEL_WIDTH + column * (width * ZOOM + SEAM), y))
            draw.text((left + LABEL_WIDTH, y + height * ZOOM), strip.note, FAINT, font)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines no wider than `width` pixels, broken at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines

"""Captions above pictures, drawn by Pillow, because many builds of ffmpeg lack drawtext, and it needs a system font.

Does not know videos.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError

MAX_LINES = 3  # lines of a caption's text; longer texts end in "..."
LINE_SPACING = 1.3
RAISED_SIZE, RAISED_BY = 0.6, 0.35  # superscripts, as shares of the font's size

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Caption:
    """A `title`, and below it a smaller, wrapped `text`.

    If the font lacks a letter, a title raises an error, and a text shows "?" instead.
    """

    title: str
    text: str = ""


def caption_bar(
    captions: Sequence[tuple[Caption, int, int]],
    total_width: int,
    *,
    size: int,
    font: Path | None = None,
    centred: bool = True,
) -> NDArray[np.uint8]:
    """Draw white text on black. Return uint8 [h, total_width, 3], h even.

    Args:
        captions: each with its first column and its width in columns.
        size: size of the titles, in pixels; texts have 0.7 of it.
        font: a TrueType or OpenType file; None means Pillow's own font, which has ASCII.

    Raises:
        InputError: if the font cannot be read, or lacks a letter of a title.
    """
    try:
        return _drawn(captions, total_width, size, font, centred=centred)
    except OSError as error:  # FreeType finds damage in a font when it draws a letter
        raise InputError(f"font {font}: expected a font, got an error ({error}); use a .ttf or .otf file") from None


def _drawn(
    captions: Sequence[tuple[Caption, int, int]], total_width: int, size: int, font: Path | None, *, centred: bool
) -> NDArray[np.uint8]:
    small = max(11, round(size * 0.7))
    texts = [wrapped(caption.text, load_font(font, small), columns) for caption, _, columns in captions]
    text_height = round(max(map(len, texts)) * small * LINE_SPACING)
    image = Image.new("RGB", (total_width, (2 * size + text_height + 1) // 2 * 2))
    draw = ImageDraw.Draw(image)
    for (caption, start, columns), lines in zip(captions, texts, strict=True):
        _draw_title(draw, caption.title, start, columns, size, font, centred=centred)
        for number, line in enumerate(lines):
            x = start + ((columns - load_font(font, small).getlength(line)) / 2 if centred else 0)
            y = 2 * size + number * small * LINE_SPACING
            draw.text((x, y - 0.2 * size), line, font=load_font(font, small), fill="#ccc")
    return np.asarray(image)


def _draw_title(
    draw: ImageDraw.ImageDraw, title: str, start: int, columns: int, size: int, font: Path | None, *, centred: bool
) -> None:
    runs = label_runs(title)
    for text, _ in runs:
        for letter in text:
            if not _has(load_font(font, size), letter):
                raise InputError(
                    f"caption {title!r}: expected a font with {letter!r}, got one without; set --font FILE.ttf"
                )

    def width(size: float) -> float:
        return sum(load_font(font, size * (RAISED_SIZE if raised else 1)).getlength(text) for text, raised in runs)

    fitting = float(size)
    while fitting > 6 and width(fitting) > columns:
        fitting -= 1
    x = start + ((columns - width(fitting)) / 2 if centred else 0)
    for text, raised in runs:
        letters = load_font(font, fitting * (RAISED_SIZE if raised else 1))
        y = size * 1.35 - (RAISED_BY * fitting if raised else 0)
        draw.text((x, y), text, font=letters, fill="white", anchor="ls")
        x += letters.getlength(text)


def label_runs(label: str) -> list[tuple[str, bool]]:
    """Split a label into runs of (text, whether it is superscript): "S²" -> [("S", False), ("2", True)]."""
    runs = []
    for raised, letters in groupby(label, key=lambda letter: unicodedata.decomposition(letter).startswith("<super>")):
        text = "".join(letters)
        runs.append((unicodedata.normalize("NFKD", text) if raised else text, raised))
    return runs


def wrapped(text: str, font: Font, columns: int, *, most: int = MAX_LINES) -> list[str]:
    """Wrap a text to at most `most` lines of at most `columns` pixels. Split a word only if no line holds it."""
    text = " ".join(text[: 8 * most * columns].split())  # most letters are wider than a pixel, and none is shown twice
    legible = "".join(_legible(text, font))
    lines: list[str] = []
    while legible and len(lines) < most:
        line = _fitting(legible, font, columns)
        if len(line) < len(legible) and len(lines) == most - 1:
            lines.append(_fitting(legible, font, columns - font.getlength("...")) + "...")
            break
        if len(line) < len(legible) and " " in line.strip() and legible[len(line)] != " ":
            line = line.rpartition(" ")[0]
        lines.append(line)
        legible = legible[len(line) :].lstrip()
    return lines


def _fitting(text: str, font: Font, columns: float) -> str:
    """Return the longest prefix of a text that is at most `columns` pixels wide, but at least one letter."""
    fits, too_long = 1, 2
    while too_long <= len(text) and font.getlength(text[:too_long]) <= columns:
        fits, too_long = too_long, 2 * too_long
    too_long = min(too_long, len(text) + 1)
    while too_long - fits > 1:  # the width grows with the length
        middle = (fits + too_long) // 2
        if font.getlength(text[:middle]) <= columns:
            fits = middle
        else:
            too_long = middle
    return text[:fits]


def _legible(text: str, font: Font) -> Iterator[str]:
    for letter in text:
        plain = unicodedata.normalize("NFKD", letter)[0]
        yield next((known for known in (letter, plain) if _has(font, known)), "?")


@cache
def _has(font: Font, letter: str) -> bool:
    return letter == " " or (letter.isprintable() and bytes(font.getmask(letter)) != bytes(font.getmask("\uffff")))


@cache
def load_font(path: Path | None, size: float) -> Font:
    """Return a font; None means Pillow's own, which has ASCII. Raises InputError for a file that is none."""
    try:
        font = ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)
    except OSError as error:
        raise InputError(f"font {path}: expected a font, got an error ({error}); use a .ttf or .otf file") from None
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font

"""Texts in the header of PNG files, which ffmpeg's encoder does not write. Knows no pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from ..errors import S2VideoError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END_OF_IHDR = len(_SIGNATURE) + 4 + 4 + 13 + 4  # length, type, content and checksum


def add_texts(path: Path, texts: Mapping[str, str]) -> None:
    """Write texts into a PNG file, each under its keyword: as tEXt if it is ASCII, otherwise as iTXt in UTF-8.

    The pixels stay as they are. The file is written in place, so it must not have its final name yet.

    Args:
        texts: keywords have 1 to 79 ASCII characters; an empty text is left out.

    Raises:
        S2VideoError: not a PNG file.
    """
    content = path.read_bytes()
    if content[:8] != _SIGNATURE or content[12:16] != b"IHDR":
        raise S2VideoError(f"ffmpeg wrote no PNG file to {path.name}; use the ffmpeg of imageio-ffmpeg")
    chunks = b"".join(_chunk(keyword, text) for keyword, text in texts.items() if text)
    path.write_bytes(content[:_END_OF_IHDR] + chunks + content[_END_OF_IHDR:])


def _chunk(keyword: str, text: str) -> bytes:
    if text.isascii():
        kind, body = b"tEXt", keyword.encode("ascii") + b"\0" + text.encode("ascii")
    else:  # no compression, no language, no translated keyword
        kind, body = b"iTXt", keyword.encode("ascii") + b"\0\0\0\0\0" + text.encode()
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

"""A signature in sheets, pages and comparisons, which have no sidecar: s2video made this file, with this content.

The signature is the SHA-256 of the rest of the file, at a place that programs ignore: a comment in HTML, XML, EDL and
JPEG, a text chunk in PNG, a `free` box in MP4, a key of its own in OTIO. A file that another program has written or
edited has none, or a wrong one. It guards against mistakes, not against forgery.
"""

import hashlib
import re
import struct
import zlib
from pathlib import Path

_TEXT = b"s2video sha256="
_DIGEST = re.compile(re.escape(_TEXT) + rb"([0-9a-f]{64})")


def sign(path: Path) -> None:
    """Add the signature to a finished file, by its suffix: .png, .jpg, .jpeg, .mp4, .otio, .edl, or else HTML."""
    content = path.read_bytes()
    suffix = path.suffix.lower()
    at = _place(content, suffix)
    signature = _wrapped(_TEXT + hashlib.sha256(content).hexdigest().encode(), suffix)
    path.write_bytes(content[:at] + signature + content[at:])


def is_signed(path: Path) -> bool:
    """Return whether a file has a signature, and its content is that which was signed."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    for found in _DIGEST.finditer(content):
        signature = _wrapped(found[0], path.suffix.lower())
        if (at := content.find(signature)) >= 0:
            rest = content[:at] + content[at + len(signature) :]
            return hashlib.sha256(rest).hexdigest().encode() == found[1]
    return False


def _place(content: bytes, suffix: str) -> int:
    if suffix == ".png":
        return len(content) - 12  # before the last chunk, IEND
    if suffix in (".jpg", ".jpeg"):
        (length,) = struct.unpack(">H", content[4:6])
        return 4 + int(length)  # after the first segment, APP0
    if suffix == ".otio":
        return content.rindex(b"}")
    return len(content)


def _wrapped(text: bytes, suffix: str) -> bytes:
    if suffix == ".png":
        chunk = b"tEXtSoftware\0" + text
        return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    if suffix in (".jpg", ".jpeg"):
        return b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text
    if suffix == ".mp4":
        return struct.pack(">I", len(text) + 8) + b"free" + text
    if suffix == ".otio":
        return b', "s2video_file": "' + text + b'"'
    if suffix == ".edl":
        return b"* " + text + b"\n"
    return b"<!-- " + text + b" -->\n"

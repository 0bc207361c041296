"""The files of jobs: images that clients send, and what is made of finished videos."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import secrets
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

from ..errors import InputError, S2VideoError
from ..media.formats import FORMATS, Codec, place_of
from ..media.output_paths import OutputPaths
from ..models.images import read_images
from ..review.sheet import strip
from ..system.files import atomic_path
from ..system.processes import tied
from .jobs import without_folders
from .queue import IMAGES
from .video_request import FieldError

CONTENT_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".zip": "application/zip"}
_THUMBNAIL, _SPRITES = 320, 12  # px; frames of a spritesheet
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_decoding = threading.Lock()  # one after the other: each loads a VAE
_waiting = threading.BoundedSemaphore(4)  # requests that may wait for it; each holds a thread of the server


class BusyError(Exception):
    """Too many requests of this kind wait."""


def save_image(content: bytes, folder: Path) -> Path:
    """Save an image that a client sent, after it was decoded within bounds: as DIGEST.TOKEN, a file for each request.

    Raises:
        FieldError: not an image of a known format, damaged, or too large.
    """
    path = folder / IMAGES / f"{hashlib.sha256(content).hexdigest()}.{secrets.token_hex(6)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        try:
            read_images(temporary, None)
        except InputError as error:
            reason = str(error).removeprefix(f"image {temporary}: ")
            raise FieldError("input_reference", f"input_reference: {reason}") from None
    return path


def decoded_data_url(text: str) -> bytes:
    """Return the bytes of an image given as a data URL. Raises FieldError for every other URL: nothing is fetched."""
    head = _DATA_URL.match(text)
    if head is None:
        raise FieldError(
            "input_reference", "input_reference: expected a file, or a URL data:image/…;base64,…; nothing is fetched"
        )
    try:
        return base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise FieldError(
            "input_reference", "input_reference: expected base64 after the comma, got other text"
        ) from None


def picture(video: Path, variant: str) -> bytes:
    """Return a thumbnail as WebP, or a spritesheet of 12 frames in a row as JPEG."""
    image = strip(video, columns=1 if variant == "thumbnail" else _SPRITES, width=_THUMBNAIL)
    content = io.BytesIO()
    image.save(content, "WEBP" if variant == "thumbnail" else "JPEG", quality=85)
    return content.getvalue()


def as_one_file(path: Path) -> Path:
    """Return a video's file; for the folder of a sequence a ZIP of its frames, without compression, made once."""
    if not path.is_dir():
        return path
    archive = path.with_name(f"{path.name}.zip")
    if not archive.exists():
        with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for frame in sorted(path.iterdir()):
                file.write(frame, f"{path.name}/{frame.name}")
    return archive


def in_format(job: str, folder: Path, codec: Codec) -> Path:
    """Return a job's video in another format, decoded once from its latents by a process of its own.

    Raises:
        InputError: its latents are gone, or the format does not suit its size.
        BusyError: too many wait for other formats already.
        S2VideoError: decoding failed.
    """
    files = OutputPaths(folder / job)
    output = files.output.with_name(f"{files.output.stem}.{codec}{FORMATS[codec].suffix}")
    if not _waiting.acquire(blocking=False):
        raise BusyError("other formats of videos are being made; try again later")
    try:
        with _decoding:
            if not place_of(output).exists():
                _decode(files.latents, output, codec)
    finally:
        _waiting.release()
    return place_of(output)


def _decode(latents: Path, output: Path, codec: Codec) -> None:
    command = [sys.executable, "-m", "s2video", "decode", str(latents), "--output", str(output), "--codec", codec]
    done = subprocess.run(tied(command, signal.SIGTERM), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        message = without_folders(lines[-1].removeprefix("s2video: error: "))
        raise (InputError if done.returncode == 2 else S2VideoError)(message)

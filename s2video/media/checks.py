"""Can this output be written? Asked before anything is computed; nothing is written."""

from __future__ import annotations

import stat
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..errors import InputError
from ..system.files import check_replaceable
from .exr import check_openimageio
from .ffmpeg import check_encoder
from .formats import VideoSpec, is_frame_name, place_of


def check_output(path: Path, *, is_video: bool = True) -> None:
    """Raise InputError unless a video, or another file, called `path` can be written, missing folders being made then.

    Writes nothing.
    """
    try:
        place = place_of(path) if is_video else path
        if place != path:
            check_replaceable(place, partial(is_frame_name, path))
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(path.stat().st_mode):
                raise InputError(f"output {path}: is a folder: give the name of a file")
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        # A file without a name, tried for real: permission bits say nothing to root, nor of read-only file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"output {path}: cannot be written there ({error.strerror}): choose another path") from None


def check_spec(spec: VideoSpec, width: int, height: int) -> None:
    """Raise InputError unless pictures of this size suit the format, and what writes it and its sound are there."""
    spec.check_size(width, height)
    if spec.audio is not None:
        import av

        try:
            with av.open(f"file:{spec.audio}", metadata_errors="replace") as container:
                if not container.streams.audio:
                    raise InputError(f"output.audio: {spec.audio} has no sound track")
        except av.FFmpegError as error:
            raise InputError(f"output.audio: cannot read {spec.audio} ({error.strerror}): check the path") from None
    if spec.format.encoder is None:
        check_openimageio()
    else:
        check_encoder(spec.format.encoder, spec.ffmpeg)

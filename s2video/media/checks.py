"""Checks, before anything is computed, that an output can be written. They write nothing."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path

from ..errors import InputError
from ..system.files import check_replaceable, check_target
from .exr import check_openimageio
from .ffmpeg import check_encoder
from .formats import VideoSpec, is_frame_name
from .output_paths import OutputPaths

LONGEST_SUFFIX = ".checkpoint.safetensors"  # of the files next to a video; they are called like it otherwise


def check_output(path: Path, *, is_video: bool = True) -> None:
    """Raise InputError unless a video and the files next to it (or a file of another kind) can be written to `path`.

    Missing folders are no error, because writing creates them. Writes nothing.
    """
    try:
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        if is_video:
            _check_length(path, os.pathconf(folder, "PC_NAME_MAX"))
            _check_files(OutputPaths(path))
        else:
            check_target(path)
        # Create a file without a name: permission bits tell nothing for root or on a read-only file system.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"output {path}: cannot be written ({error.strerror}); choose another path") from None


def _check_files(files: OutputPaths) -> None:
    for path in files.all:
        if path == files.video and path != files.output:
            check_replaceable(path, partial(is_frame_name, files.output))
        else:
            check_target(path)


def _check_length(path: Path, most: int) -> None:
    """Raise InputError unless the video, and the files next to it, can have their names of at most `most` bytes."""
    longest = len(os.fsencode(path.with_suffix(LONGEST_SUFFIX).name))
    if longest > most:
        raise InputError(
            f"output {path}: expected at most {most - len(LONGEST_SUFFIX)} bytes before the suffix, got "
            f"{longest - len(LONGEST_SUFFIX)}; shorten the name (X{LONGEST_SUFFIX} is written next to it)"
        )


def check_spec(spec: VideoSpec, width: int, height: int) -> None:
    """Raise InputError unless the format takes this size, its encoder is available, and its sound can be read."""
    spec.check_size(width, height)
    if spec.audio is not None:
        import av

        try:
            with av.open(f"file:{spec.audio}", metadata_errors="replace") as container:
                if not container.streams.audio:
                    raise InputError(f"output.audio: {spec.audio} has no sound track; choose another file")
                if container.streams.audio[0].codec_context is None:
                    raise InputError(f"output.audio: {spec.audio} is in a codec that is not known; choose another file")
        except av.FFmpegError as error:
            raise InputError(f"output.audio: cannot read {spec.audio} ({error.strerror}); check the path") from None
    if spec.format.encoder is None:
        check_openimageio()
    else:
        check_encoder(spec.format.encoder, spec.ffmpeg)

"""Checks, before anything is computed, that an output can be written. They write nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..errors import InputError
from ..system.files import check_replaceable, check_target
from .credentials import check_credentials
from .exr import check_openimageio
from .ffmpeg import check_encoder
from .formats import VideoSpec, is_in_sequence
from .output_paths import OutputPaths, VideoFile

LONGEST_SUFFIX = ".checkpoint.safetensors"  # of the files next to a video; they are called like it otherwise


def check_output(files: OutputPaths) -> None:
    """Raise InputError unless all files of a take can be written.

    Missing folders are no error, because writing creates them. Writes nothing.
    """
    _check_length(files.output)
    with _writable(files.output):
        for file in files.videos:
            _check_names(file)
        for path in (files.latents, files.resume_point):
            check_target(path)
    others = {copy.output.parent: copy.output for copy in files.copies if copy.output.parent != files.output.parent}
    for path in others.values():
        with _writable(path):
            pass


def check_file(file: VideoFile) -> None:
    """Raise InputError unless one video and its sidecar can be written. Writes nothing."""
    with _writable(file.output):
        _check_names(file)


def _check_names(file: VideoFile) -> None:
    if file.video != file.output:
        check_replaceable(file.video, partial(is_in_sequence, file.output))
    else:
        check_target(file.video)
    check_target(file.sidecar)


def check_report(path: Path) -> None:
    """Raise InputError unless a single file can be written to `path`. Writes nothing."""
    with _writable(path):
        check_target(path)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Check the folder of `path` after the block. Raise InputError for all errors of the system."""
    try:
        yield
        folder = _existing_folder(path)
        # Create a file without a name: permission bits tell nothing for root or on a read-only file system.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"output {path}: cannot be written ({error.strerror}); choose another path") from None


def _existing_folder(path: Path) -> Path:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder


def _check_length(path: Path) -> None:
    """Raise InputError unless the video, and the files next to it, can have their names."""
    try:
        most = os.pathconf(_existing_folder(path), "PC_NAME_MAX")
    except OSError as error:
        raise InputError(f"output {path}: cannot be written ({error.strerror}); choose another path") from None
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
    if spec.credentials is not None:
        check_credentials(spec.credentials)
    if spec.format.encoder is None:
        check_openimageio()
    else:
        check_encoder(spec.format.encoder, spec.ffmpeg)

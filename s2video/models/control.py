"""Control of a video: frames that steer it, a mask, and references, read from files and fitted to the video's size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..config.control import ControlConfig
from ..config.run import RunConfig
from ..errors import InputError
from .images import Images, fit, read_image, read_images

STILLS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".jp2", ".ppm")
"""Suffixes of images: single ones, and those that count in a folder of frames."""

Size = tuple[int, int]


class Control(NamedTuple):
    """What steers a video in addition to its prompt.

    Attributes:
        video: a frame of the video's size for each of its frames, RGB; empty without a control video.
        mask: the same, 8 bits of grey: white where the model makes the video anew; empty: everywhere.
        references: images of any size, RGB.
        notes: sentences for the user.
    """

    video: tuple[Image.Image, ...] = ()
    mask: tuple[Image.Image, ...] = ()
    references: tuple[Image.Image, ...] = ()
    notes: tuple[str, ...] = ()

    def fitted(self, width: int, height: int) -> Control:
        """Return it with frames of the video's size; unchanged if they have it."""
        video = tuple(fit(frame, width, height) for frame in self.video)
        return self._replace(video=video, mask=tuple(_fit_mask(frame, width, height) for frame in self.mask))

    def digests(self) -> list[str]:
        """Return what each part is and its SHA-256, as texts."""
        return [f"{kind} {_digest(frames)}" for kind, frames in self._parts()]

    def records(self, config: ControlConfig) -> list[dict[str, Any]]:
        """Return kind, path, number of frames and digest of each part, for a sidecar."""
        parts = zip(config.files, self._parts(), strict=True)
        return [
            {"kind": kind, "path": str(file.path), "frames": len(frames), "sha256": _digest(frames)}
            for file, (kind, frames) in parts
        ]

    def _parts(self) -> Iterator[tuple[str, tuple[Image.Image, ...]]]:
        if self.video:
            yield "video", self.video
        if self.mask:
            yield "mask", self.mask
        for image in self.references:
            yield "reference", (image,)


Pictures = Images | Control
"""What a video is made from besides its prompt."""


def read_pictures(config: RunConfig) -> Pictures | None:
    """Read the images or the control of a job, fitted to the video's size; None if there are none.

    Raises:
        InputError: a file that cannot be read, or frames that do not suit the job.
    """
    if config.control.files:
        return read_control(config)
    return read_images(*config.image_paths)


def read_control(config: RunConfig) -> Control:
    """Read the files of `control`: as many frames as the video has, cut at the centre to its shape.

    Raises:
        InputError: a file that is missing or damaged, too few frames, or a mask of another shape than the video.
    """
    control, sampling = config.control, config.sampling
    size = sampling.width, sampling.height
    files = {file.setting: file.path for file in control.files}
    video, mask = _Frames(), _Frames()
    notes: list[str] = []
    if control.video is not None:
        video = _read_frames(files["control.video"], "control.video", sampling.num_frames, size)
    if control.mask is not None:
        mask = _read_frames(files["control.mask"], "control.mask", sampling.num_frames, size, is_mask=True)
        _check_same_shape(video, mask, files)
    for name, frames in (("control.video", video), ("control.mask", mask)):
        if frames.goes_on:
            notes.append(f"{name}: {files[name]} has more than {sampling.num_frames} frames; the rest is not used")
    references = tuple(
        read_image(file.path, file.setting) for file in control.files if file.setting == "control.references"
    )
    return Control(video.frames, mask.frames, references, tuple(notes))


class _Frames(NamedTuple):
    """Fitted frames, the size that they had in their file, and whether the file has more of them."""

    frames: tuple[Image.Image, ...] = ()
    size: Size = (0, 0)
    goes_on: bool = False


def _read_frames(path: Path, setting: str, count: int, size: Size, *, is_mask: bool = False) -> _Frames:
    found: list[Image.Image] = []
    own = (0, 0)
    source = _frames_of(path, setting)
    for frame in islice(source, count):
        if own not in ((0, 0), frame.size):
            raise InputError(
                f"{setting} {path}: expected frames of {own[0]}x{own[1]} px like the first one, got "
                f"{frame.width}x{frame.height}; make them of one size"
            )
        own = frame.size
        found.append(_fit_mask(frame.convert("L"), *size) if is_mask else fit(frame, *size))
    if is_mask and path.suffix.lower() in STILLS:
        return _Frames(tuple(found) * count, own)
    if len(found) < count:
        raise InputError(
            f"{setting} {path}: expected at least {count} frames (sampling.num_frames), got {len(found)}; take a "
            "longer one, or set sampling.num_frames lower"
        )
    return _Frames(tuple(found), own, next(source, None) is not None)


def _frames_of(path: Path, setting: str) -> Iterator[Image.Image]:
    """Yield the frames of a video file, of a folder of images in the order of the numbers in their names, or an image.

    Other files in a folder are left out.
    """
    if path.is_dir():
        images = [file for file in path.iterdir() if file.suffix.lower() in STILLS and not file.name.startswith(".")]
        if not images:
            raise InputError(
                f"{setting} {path}: expected a folder of images ({', '.join(STILLS)}), got none in it; check the path"
            )
        for image in sorted(images, key=lambda file: _by_number(file.name)):
            yield read_image(image, setting)
    elif path.suffix.lower() in STILLS:
        yield read_image(path, setting)
    else:
        from ..media.video import video_frames  # here, because it imports torch

        try:
            for pixels in video_frames(path):
                yield Image.fromarray(pixels)
        except InputError as error:
            raise InputError(f"{setting}: {error}; expected a video file, a folder of images, or an image") from None


def _by_number(name: str) -> list[tuple[int, int | str]]:
    """Return a key by which frame 2 comes before frame 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _check_same_shape(video: _Frames, mask: _Frames, files: dict[str, Path]) -> None:
    """Raise InputError if a mask would be cut at other places than its video."""
    (width, height), (mask_width, mask_height) = video.size, mask.size
    if abs(width * mask_height - height * mask_width) > max(*video.size, *mask.size):  # a pixel of rounding
        raise InputError(
            f"control.mask {files['control.mask']}: expected the shape of control.video, {width}x{height} px, or the "
            f"same at another size, got {mask_width}x{mask_height}; cut both in the same way"
        )


def _fit_mask(mask: Image.Image, width: int, height: int) -> Image.Image:
    return fit(mask, width, height, Image.Resampling.BILINEAR)  # has no overshoot at edges


def _digest(frames: tuple[Image.Image, ...]) -> str:
    """Return SHA-256 of number, size and pixels."""
    digest = hashlib.sha256(f"{len(frames)} {frames[0].size}".encode())
    for frame in frames:
        digest.update(frame.tobytes())
    return digest.hexdigest()

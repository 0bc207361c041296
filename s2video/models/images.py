"""The images that a video starts from or ends with."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from ..errors import InputError

_DEEP = ("I", "F")  # first letters of Pillow's modes above 8 bits, whose values it would clip instead of scale


class Images(NamedTuple):
    """The first image and, optionally, the last, in RGB."""

    first: Image.Image
    last: Image.Image | None = None

    def fitted(self, width: int, height: int) -> "Images":
        """Return images scaled to cover the video's size and cropped at the centre; unchanged if they fit."""
        return Images(_fit(self.first, width, height), None if self.last is None else _fit(self.last, width, height))

    def records(self, *paths: Path | None) -> list[dict[str, str]]:
        """Return the path and digest of each image, for a sidecar."""
        present = [str(path) for path in paths if path is not None]
        return [{"path": path, "digest": digest} for path, digest in zip(present, self.digests(), strict=True)]

    def digests(self) -> list[str]:
        """Return the SHA-256 of each image's size and pixels."""
        return [hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest() for image in self if image]


def read_images(first: Path | None, last: Path | None) -> Images | None:
    """Read image files of any format that Pillow knows. Return None if there is no first image.

    Applies a camera's orientation tag, puts transparent images on white, and uses the first frame of an animation.

    Raises:
        InputError: if a file cannot be read, or is not an image with 8 bits per channel.
    """
    if first is None:
        return None
    return Images(_read(first, "image"), None if last is None else _read(last, "last_image"))


def _read(path: Path, field: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    except Image.UnidentifiedImageError:
        raise InputError(
            f"{field} {path}: expected an image, such as PNG or JPEG, got another kind of file; check the path"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{field} {path}: cannot be read ({reason}); check the path and the file") from None
    if image.mode.startswith(_DEEP):
        raise InputError(
            f"{field} {path}: expected 8 bits per channel, got Pillow's mode {image.mode}; convert the image"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)

"""The images that a video starts from or ends with."""

import hashlib
from typing import NamedTuple

from PIL import Image, ImageOps


class Images(NamedTuple):
    """The first image, and perhaps the last: RGB."""

    first: Image.Image
    last: Image.Image | None = None

    def fitted(self, width: int, height: int) -> "Images":
        """Scaled until they cover the video's pixels, and cut off evenly on both sides; as they are where they fit."""
        return Images(_fit(self.first, width, height), None if self.last is None else _fit(self.last, width, height))

    def digests(self) -> list[str]:
        """SHA-256 of each one's size and pixels."""
        return [hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest() for image in self if image]


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)

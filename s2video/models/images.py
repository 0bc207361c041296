"""The images that a video starts from or ends with."""

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageCms, ImageOps

from ..errors import InputError

# Pillow knows many more. Their decoders are rarely used and rarely tested, so they are not opened.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM")
MAX_PIXELS = 120_000_000  # of one image; more than cameras have, and at most a few GB while it is converted
_DEEP = ("I", "F")  # first letters of Pillow's modes above 8 bits, whose values it would clip instead of scale


class Images(NamedTuple):
    """The first image and, optionally, the last, in RGB."""

    first: Image.Image
    last: Image.Image | None = None

    def fitted(self, width: int, height: int) -> "Images":
        """Return images scaled to cover the video's size and cropped at the centre; unchanged if they fit."""
        return Images(fit(self.first, width, height), None if self.last is None else fit(self.last, width, height))

    def records(self, *paths: Path | None) -> list[dict[str, str]]:
        """Return the path and digest of each image, for a sidecar."""
        present = [str(path) for path in paths if path is not None]
        return [{"path": path, "digest": digest} for path, digest in zip(present, self.digests(), strict=True)]

    def digests(self) -> list[str]:
        """Return the SHA-256 of each image's size and pixels."""
        return [hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest() for image in self if image]


def read_images(first: Path | None, last: Path | None) -> Images | None:
    """Read image files of one of the `FORMATS`. Return None if there is no first image.

    Converts colours with another ICC profile to sRGB, applies a camera's orientation tag, puts transparent images on
    white, and uses the first frame of an animation.

    Raises:
        InputError: if a file cannot be read, is damaged, has more than `MAX_PIXELS`, is not an image with 8 bits per
            channel, or has a damaged ICC profile.
    """
    if first is None:
        return None
    return Images(read_image(first, "image"), None if last is None else read_image(last, "last_image"))


def read_image(path: Path, field: str) -> Image.Image:
    """Read one image as `read_images` does; `field` is the setting that names it. Raises InputError."""
    image, profile = _decoded(path, field)
    if image.mode.startswith(_DEEP):
        raise InputError(
            f"{field} {path}: expected 8 bits per channel, got Pillow's mode {image.mode}; convert the image"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
    if profile:
        try:
            image = _to_srgb(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{field} {path}: its ICC colour profile cannot be used ({reason}); convert the image to sRGB, or "
                "remove the profile"
            ) from None
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info.pop("icc_profile", None)  # it is not that of these pixels any more
    return image


def _decoded(path: Path, field: str) -> tuple[Image.Image, bytes | None]:
    """Return an image, turned as its camera says, and its ICC profile."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("it is not a regular file")
        with warnings.catch_warnings(), _quiet_pillow():
            warnings.simplefilter("error", UserWarning)  # Pillow's word for metadata that it cannot read
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is lower
            Image.init()
            known = [format for format in FORMATS if format in Image.OPEN]  # older Pillows have no AVIF
            with Image.open(path, formats=known) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise ValueError(f"{file.width}x{file.height} pixels, at most {MAX_PIXELS} are read")
                return ImageOps.exif_transpose(file), file.info.get("icc_profile")
    except Image.UnidentifiedImageError:
        raise InputError(
            f"{field} {path}: expected an image in one of the formats {', '.join(FORMATS)}, got another or a damaged "
            "file; convert it to PNG"
        ) from None
    except Exception as error:  # a damaged file can make a decoder raise anything, such as struct.error or TypeError
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise InputError(f"{field} {path}: cannot be read ({reason[:200]}); check the path and the file") from None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Without what Pillow logs about a file that it refuses anyway."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Return an image in sRGB: RGBA if it was RGBA, else RGB; as it is if its profile says sRGB.

    The intent is relative colorimetric, so white stays white, and colours outside sRGB are cut off.
    """
    profile = ImageCms.ImageCmsProfile(BytesIO(icc))
    if (profile.profile.profile_description or "").startswith("sRGB"):
        return image  # a conversion would change the last bit
    space = profile.profile.xcolor_space.strip()
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    mode = "L" if space == "GRAY" else "CMYK" if image.mode == "CMYK" else "RGB"
    colours = image.convert(mode)
    if space not in ("GRAY", colours.mode):
        raise ValueError(f"a profile of {space} in an image of {colours.mode}")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    converted = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), intent, outputMode="RGB")
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def fit(
    image: Image.Image, width: int, height: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Return an image scaled to cover a size in pixels and cropped at the centre; unchanged if it has that size."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), resampling)

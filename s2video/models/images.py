"""The images that a video starts from or ends with."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageCms, ImageOps

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

    Converts colours with another ICC profile to sRGB, applies a camera's orientation tag, puts transparent images on
    white, and uses the first frame of an animation.

    Raises:
        InputError: if a file cannot be read, is not an image with 8 bits per channel, or has a damaged ICC profile.
    """
    if first is None:
        return None
    return Images(_read(first, "image"), None if last is None else _read(last, "last_image"))


def _read(path: Path, field: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            profile = file.info.get("icc_profile")
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


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)

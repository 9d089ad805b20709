"""Photographs as they are read and written for a person to look at."""

import dataclasses
import os
import tempfile

import numpy as np
from PIL import Image, ImageOps

from repq_tf.files import replacing
from repq_tf.train.errors import UserError

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_LARGEST = 1 << 30  # pixels in a row or a column, of formats that allow more than there are
_FORMATS = {  # what a name ends in: whether that format keeps opacity, and its largest side
    ".png": (True, _LARGEST),
    ".webp": (True, 16383),
    ".tif": (True, _LARGEST),
    ".tiff": (True, _LARGEST),
    ".jpg": (False, 65500),
    ".jpeg": (False, 65500),
    ".bmp": (False, _LARGEST),
}
_QUALITY = 95  # of formats that lose something


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A picture.

    Attributes:
        pixels: uint8 array `(h, w, c)`: grey, grey and opacity, RGB, or RGB and opacity.
        profile: The ICC colour profile of the pixels as bytes, or None.
    """

    pixels: np.ndarray
    profile: bytes | None = None


def read_photograph(path: str) -> Photograph:
    """Reads a picture, turned upright; CMYK becomes RGB, and its profile is left out.

    Raises:
        UserError: If the file is no picture of 8 bits a channel, naming it.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in _MODES:
                raise UserError(
                    f"{path} must have 8 bits a channel. Received: mode {file.mode}"
                )
            profile = None if file.mode == "CMYK" else file.info.get("icc_profile")
            picture = ImageOps.exif_transpose(file)
            transparent = "transparency" in picture.info or picture.mode[-1] == "A"
            grey = picture.mode in ("1", "L", "LA")
            mode = ("L" if grey else "RGB") + ("A" if transparent else "")
            pixels = np.asarray(picture.convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    return Photograph(pixels.reshape(*pixels.shape[:2], -1), profile)


def check_writable(path: str, photograph: Photograph, scale: int = 1) -> None:
    """Makes sure that a name's format can hold an enlarged picture, and its folder takes files.

    Args:
        path: The name.
        photograph: The `Photograph` that is enlarged.
        scale: How many times.

    Raises:
        UserError: If not.
    """
    end = os.path.splitext(path)[1].lower()
    if end not in _FORMATS:
        raise UserError(f"The result must end in one of {' '.join(_FORMATS)}. Received: {path}")
    height, width, channels = photograph.pixels.shape
    opacity, largest = _FORMATS[end]
    if channels % 2 == 0 and not opacity:
        able = " ".join(end for end, (opacity, _) in _FORMATS.items() if opacity)
        raise UserError(
            f"The photograph has opacity, so the result must end in one of {able}."
            f" Received: {path}"
        )
    if scale * max(height, width) > largest:
        able = " ".join(end for end, (_, side) in _FORMATS.items() if side == _LARGEST)
        raise UserError(
            f"The result has {scale * width}x{scale * height} pixels, and {end} holds at most"
            f" {largest} in a row or a column; it may end in one of {able}. Received: {path}"
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f"The result must lie in a folder that exists. Received: {path}")
    if os.path.isdir(path):
        raise UserError(f"The result must be a file. Received: {path}, which is a folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def write_photograph(path: str, photograph: Photograph) -> None:
    """Writes a picture, whole or not at all, in the format that its name says.

    Raises:
        UserError: If it cannot be written.
    """
    pixels = photograph.pixels
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    try:
        with replacing(path) as temporary:
            picture.save(temporary, quality=_QUALITY, icc_profile=photograph.profile)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be written: {reason}. What was there before is unchanged."
        ) from error

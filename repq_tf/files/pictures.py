"""Pictures in files, and how their pixels become a network's input."""

import os
from typing import Any, TypeAlias

import numpy as np

Picture: TypeAlias = Any  # a Pillow image
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def scale_pixels(images: np.ndarray) -> np.ndarray:
    """Maps uint8 pixels to float32 in [-1, 1]: a signed 8-bit grid hits them almost exactly."""
    return images.astype("float32") / np.float32(127.5) - np.float32(1)


def read_picture(path: str | os.PathLike[str], channels: int) -> Picture:
    """Reads a file.

    Args:
        path: the file.
        channels: 1 for grey, 3 for colour.

    Returns:
        A Pillow image.

    Raises:
        ValueError: the file is no picture; it is named.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":  # `convert` would cut its values off
                raise ValueError(f"it must have 8 bits a channel, not mode {picture.mode}")
            return picture.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def fit(picture: Picture, height: int, width: int) -> Picture:
    """Resizes a Pillow image: the largest middle part of the right aspect, to the size."""
    from PIL import Image

    wide = min(picture.width, picture.height * width / height)
    high = min(picture.height, picture.width * height / width)
    left, top = (picture.width - wide) / 2, (picture.height - high) / 2
    box = (left, top, left + wide, top + high)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def pixels(picture: Picture, channels: int) -> np.ndarray:
    """The pixels of a Pillow image, uint8 `(height, width, channels)`."""
    array = np.asarray(picture)
    return array.reshape(*array.shape[:2], channels)

"""Reading and resizing pictures to squares."""

import numpy as np
from PIL import Image

from repq_tf.files import pictures
from repq_tf.train.errors import UserError


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Returns uint8 images `(n, h, w, c)` resized to squares of height `size`."""
    if images.shape[1:3] == (size, size):
        return images
    channels = images.shape[3]
    out = np.empty((len(images), size, size, channels), "uint8")
    for k, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        out[k] = pictures.pixels(pictures.fit(picture, size, size), channels)
    return out


def read_picture(path: str, channels: int, size: int | None = None) -> np.ndarray:
    """Returns a file's picture as a uint8 array `(h, w, channels)`.

    Args:
        path: The file.
        channels: 1 for grey, 3 for colour.
        size: Height and width of the result; by default the picture's own.

    Raises:
        UserError: If the file is no picture, naming it.
    """
    try:
        picture = pictures.read_picture(path, channels)
    except ValueError as error:
        raise UserError(str(error)) from error
    if size:
        picture = pictures.fit(picture, size, size)
    return pictures.pixels(picture, channels)

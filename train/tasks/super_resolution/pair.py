"""A photograph in two sizes."""

import dataclasses

import numpy as np

from repq_tf.train.errors import UserError
from repq_tf.train.tasks.super_resolution.imresize import imresize


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image in two sizes.

    Attributes:
        name: Its name.
        low: uint8 array `(h, w, 3)`.
        high: uint8 array `(scale h, scale w, 3)`.
        file: The file of the high-resolution image, where it has one.
    """

    name: str
    low: np.ndarray
    high: np.ndarray
    file: str | None = None


def make_pair(name: str, high: np.ndarray, scale: int, low: np.ndarray | None = None) -> Pair:
    """Returns the `Pair` of a photograph, which is cut to a multiple of the scale.

    Args:
        name: Its name, for messages.
        high: uint8 array `(h, w, 3)`.
        scale: How many times smaller the low-resolution image is.
        low: That image, if it is given; by default made by `imresize`.

    Raises:
        UserError: If the sizes of the two do not belong together.
    """
    height, width = (size // scale for size in high.shape[:2])
    if low is not None and low.shape[:2] != (height, width):
        raise UserError(
            f"{name} is {high.shape[0]}x{high.shape[1]}, so at scale {scale} its low-resolution"
            f" image must be {height}x{width}. Received: {low.shape[0]}x{low.shape[1]}"
        )
    if not height or not width:
        raise UserError(f"{name} is smaller than the scale, {scale} (--scale).")
    high = high[: height * scale, : width * scale]
    return Pair(name, imresize(high, 1 / scale) if low is None else low, high)

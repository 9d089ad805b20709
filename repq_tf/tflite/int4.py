"""4-bit integers as `.tflite` files hold them: two a byte, the first in the lower half."""

from collections.abc import Sequence

import numpy as np

from repq_tf.keras_api import Array


def pack(integers: Array) -> Array:
    """Packs an int8 array of integers within -8 to 7; an odd one is followed by 0.

    Returns:
        A flat uint8 array.
    """
    halves = np.ascontiguousarray(integers, np.int8).reshape(-1).view(np.uint8) & 15
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    return halves[0::2] | halves[1::2] << 4


def unpack(packed: Array, shape: Sequence[int]) -> Array:
    """Returns the int8 array of a shape that `pack` packed."""
    packed = np.asarray(packed, np.uint8)
    halves = np.stack([packed << 4, packed & 240], axis=-1).reshape(-1).view(np.int8) >> 4
    return halves[: int(np.prod(shape))].reshape(shape)

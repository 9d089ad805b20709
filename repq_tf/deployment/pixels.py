"""Camera pixels as the input of an integer file: normalisation and rounding as a table.

What the model's input quantizer makes of a normalised pixel is one of at most 256 integers, so
the file looks it up. An affine QUANTIZE could not: for pixels / 127.5 - 1 its zero point would
be 127.5, and its fixed-point rescale rounds other ties than the model does.
"""

from typing import Any

import numpy as np

from repq_tf.keras_api import Array, ops
from repq_tf.layers import Quantize


def pixel_table(layer: Quantize, pixels: Any, channels: int) -> Array:
    """What a model's input quantizer makes of each pixel value.

    Args:
        layer: the `Quantize` layer of the model's input.
        pixels: `(mean, std)`, or a function of images; see `export_tflite`.
        channels: of the images.

    Returns:
        int8 `(256, channels)`: the integers of the file's int8 input.
    """
    images = np.repeat(np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1), channels, axis=3)
    if callable(pixels):
        values = np.asarray(ops.convert_to_numpy(pixels(images)), np.float32)
        if values.shape != images.shape or not np.isfinite(values).all():
            raise ValueError(
                "pixels, a function, must make finite values of the shape of its images, "
                f"{images.shape}. Received: shape {values.shape}"
            )
    else:
        values = normalize(images, *check_pixels(pixels, channels))
    levels = ops.convert_to_numpy(layer.integers(ops.convert_to_tensor(values)))
    return (levels.reshape(256, channels) + layer.zero_point).astype(np.int8)


def normalize(images: Array, mean: Array, std: Array) -> Array:
    """Pixels as float32 inputs, computed as the caller of a model does."""
    return (images.astype(np.float32) - mean) / std


def check_pixels(pixels: Any, channels: int) -> tuple[Array, Array]:
    """`(mean, std)` as float32 arrays of one number or one for each channel.

    Raises:
        ValueError: they are not.
    """
    try:
        mean, std = (np.asarray(value, np.float32) for value in pixels)
        good = all(value.shape in ((), (1,), (channels,)) for value in (mean, std))
        finite = np.isfinite([*mean.ravel(), *std.ravel()]).all()
        good = bool(good and finite and (std > 0).all())
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            "pixels must be (mean, std), numbers or sequences with one for each of the "
            f"{channels} channels, std positive. Received: {pixels!r}"
        )
    return mean, std

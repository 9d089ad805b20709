"""Fewer pixels of many large features, which tell as much of their moments as all of them."""

import math

from repq_tf.branches import FeatureReading
from repq_tf.windows import subsample

# How many values of each channel decide on its moments, in all images together.
_VALUES = 2**15


def thin(y, images):
    """Returns every n-th pixel of features `(batch, height, width, channels)`, both ways.

    Args:
        y: the features of some images.
        images: the number of images in all batches.
    """
    return subsample(y, _spacing(y.shape[1:3], images))


def thin_reading(reading, size, images):
    """Returns a `FeatureReading` whose convolutions make those pixels alone.

    Args:
        reading: the reading of a block's input.
        size: of the block's kernel, `(kh, kw)`.
        images: the number of images in all batches.
    """
    pixels = [
        (length + sum(pair) - kernel) // stride + 1
        for length, pair, kernel, stride in zip(
            reading.x.shape[1:3], reading.window, size, reading.strides, strict=True
        )
    ]
    strides = zip(reading.strides, _spacing(pixels, images), strict=True)
    return FeatureReading(reading.x, reading.window, tuple(s * n for s, n in strides))


def _spacing(pixels, images):
    height, width = pixels
    n = max(1, math.isqrt(images * height * width // _VALUES))
    return (min(n, height), min(n, width))

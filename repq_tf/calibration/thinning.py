"""Fewer pixels of many large features, which tell as much of their moments as all of them."""

import math
from collections.abc import Sequence

from repq_tf.branches import FeatureReading
from repq_tf.keras_api import Pair, Tensor
from repq_tf.windows import convolved_size, subsample

# How many values of each channel decide on its moments, in all images together.
_VALUES = 2**15


def thin(y: Tensor, images: int, values: int = _VALUES, phases: int = 1) -> Tensor:
    """Returns every n-th pixel of features `(batch, height, width, channels)`, both ways.

    Args:
        y: the features of some images.
        images: the number of images in all batches.
        values: how many pixels of these have to stay at least; there may be four times as many.
        phases: after how many pixels the features' kind repeats, of which all must stay.
    """
    return subsample(y, _spacing(y.shape[1:3], images, values, phases))


def thin_reading(
    reading: FeatureReading, size: Pair, images: int, values: int = _VALUES, phases: int = 1
) -> FeatureReading:
    """Returns a `FeatureReading` whose convolutions make those pixels alone.

    Args:
        reading: the reading of a block's input.
        size: of the block's kernel, `(kh, kw)`.
        images: the number of images in all batches.
        values: as in `thin`.
        phases: likewise.
    """
    spatial = reading.x.shape[1:3]
    pixels = convolved_size(spatial, reading.window, size, reading.strides)
    (high, wide), (down, right) = reading.strides, _spacing(pixels, images, values, phases)
    return FeatureReading(reading.x, reading.window, (high * down, wide * right))


def _spacing(pixels: Sequence[int], images: int, values: int, phases: int) -> Pair:
    height, width = pixels
    n = max(1, math.isqrt(images * height * width // values))
    while math.gcd(n, phases) > 1:
        n -= 1
    return (min(n, height), min(n, width))

"""Fewer pixels of large features, which tell as much of their moments as all of them."""

from repq_tf.branches import FeatureReading
from repq_tf.windows import subsample

# Of a feature map's rows and columns at least so many count: with a few hundred images, each
# channel has some 10^5 values.
_LEAST = 28


def thin(y):
    """Every n-th pixel of features `(batch, height, width, channels)`, both ways."""
    return subsample(y, _spacing(y.shape[1:3]))


def thin_reading(reading, size):
    """A `FeatureReading` whose convolutions make those pixels alone.

    Args:
        reading: the reading of a block's input.
        size: of the block's kernel, `(kh, kw)`.
    """
    pixels = [
        (length + sum(pair) - kernel) // stride + 1
        for length, pair, kernel, stride in zip(
            reading.x.shape[1:3], reading.window, size, reading.strides, strict=True
        )
    ]
    strides = [s * n for s, n in zip(reading.strides, _spacing(pixels), strict=True)]
    return FeatureReading(reading.x, reading.window, tuple(strides))


def _spacing(pixels):
    return tuple(max(1, n // _LEAST) for n in pixels)

"""What convolutions read, at random places of features that are too large to be kept."""

import numpy as np

from repq_tf.branches import FeatureReading
from repq_tf.keras_api import Array, Pair, ops
from repq_tf.kernels import AffineKernel
from repq_tf.windows import apply_window

# How many numbers of a convolution's input are kept, and of how many patches at most.
_VALUES = 2**18
_PATCHES = 2**12


class PatchSampler:
    """The patches of a tensor that a convolution reads; the tensor comes batch by batch.

    They are those of random pixels of the output, as many of each image; of images at equal
    distances, where there are more images than patches.

    Args:
        size: of the kernel, `(kh, kw)`.
        groups: of the convolution.
        images: the number of images to come.
    """

    def __init__(self, size: Pair, groups: int, images: int) -> None:
        self._size, self._groups, self._images = size, groups, images
        self._random = np.random.default_rng(0)
        self._drawn: list[Array] = []
        self._seen = 0

    def add(self, reading: FeatureReading) -> None:
        """Draws from the `FeatureReading` of a batch of the convolution's input."""
        views = patches_of(reading, self._size)
        (height, width), values = views.shape[1:3], int(np.prod(views.shape[3:]))
        patches = max(1, min(_PATCHES, _VALUES // values))
        spacing = -(-self._images // patches)
        rows = np.arange(-self._seen % spacing, len(views), spacing)[:, None]
        self._seen += len(views)
        pixels, count = height * width, max(1, patches // self._images)
        if count < pixels:
            places = self._random.integers(0, pixels, (len(rows), count))
        else:
            places = np.arange(pixels)
        self._drawn.append(views[rows, places // width, places % width].reshape(-1, values))

    def drawn(self) -> Array:
        """What was drawn, `(groups, patches, channels / groups * kh * kw)`."""
        return by_group(np.concatenate(self._drawn), self._groups)


def patches_of(reading: FeatureReading, size: Pair) -> Array:
    """The patches that a convolution reads, `(batch, height, width, channels, kh, kw)`.

    Args:
        reading: the `FeatureReading` of its input.
        size: of its kernel, `(kh, kw)`.

    Returns:
        A view of the padded input.
    """
    x = ops.convert_to_numpy(apply_window(reading.x, reading.window))
    down, right = reading.strides
    return np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))[:, ::down, ::right]


def by_group(values: Array, groups: int) -> Array:
    """Rows `(n, groups * m)` as `(groups, n, m)`."""
    return values.reshape(len(values), groups, -1).transpose(1, 0, 2)


def kernel_matrix(affine: AffineKernel) -> Array:
    """A kernel as the matrices `(groups, inputs / groups * kh * kw, outputs / groups)`.

    Patches times them are what the convolution makes.
    """
    kernel = ops.convert_to_numpy(affine.kernel).transpose(2, 0, 1, 3)
    outputs = affine.out_channels // affine.groups
    return kernel.reshape(-1, affine.groups, outputs).transpose(1, 0, 2)


def kernel_of(matrix: Array, size: Pair) -> Array:
    """The kernel `(kh, kw, inputs / groups, outputs)` of such matrices."""
    groups, rows, outputs = matrix.shape
    kernel = matrix.transpose(1, 0, 2).reshape(-1, *size, groups * outputs)
    return kernel.transpose(1, 2, 0, 3)

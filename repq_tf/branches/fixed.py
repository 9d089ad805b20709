"""Leaves without weights: fixed filters, and the filters of the field."""

import numpy as np

from repq_tf.arguments import positive
from repq_tf.branches.base import Branch
from repq_tf.branches.readings import Reading
from repq_tf.keras_api import dtype_name
from repq_tf.kernels import AffineKernel
from repq_tf.windows import VALID, convolve

SOBEL_X = np.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
SOBEL_Y = SOBEL_X.T
LAPLACIAN = np.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


class Fixed(Branch):
    """A convolution whose kernel is a constant.

    Args:
        kernel: `(kh, kw, in_channels / groups, out_channels)`, a NumPy array.
        groups: number of groups.
        name: name of the branch.

    Example:
        >>> branch = Fixed.depthwise(SOBEL_X, channels=8, name="sobel_x")
        >>> branch.merge().size
        (3, 3)
    """

    def __init__(self, kernel, groups=1, name="fixed", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.array = np.asarray(kernel, np.float64)
        if self.array.ndim != 4:
            raise ValueError(
                "kernel must be (kh, kw, in_channels / groups, out_channels). Received: shape "
                f"{self.array.shape}"
            )
        self.kernel_size = self.array.shape[:2]
        self.groups = positive(groups, "groups")

    @classmethod
    def depthwise(cls, filters, channels, name):
        """One filter `(kh, kw)` for every channel, or one each: `(kh, kw, channels)`."""
        filters = np.asarray(filters, np.float64)
        if filters.ndim == 2:
            filters = np.repeat(filters[:, :, None], channels, axis=2)
        return cls(filters[:, :, None, :], channels, name)

    @classmethod
    def average(cls, kernel_size, channels, name="average"):
        """The mean of every channel over a window; zeros around the image count."""
        filters = np.full(kernel_size, 1 / np.prod(kernel_size))
        return cls.depthwise(filters, channels, name)

    @classmethod
    def dirac(cls, in_channels, out_channels, groups=1, name="dirac"):
        """The identity of the channels that input and output have in common, group by group."""
        inputs, outputs = in_channels // groups, out_channels // groups
        kernel = np.tile(np.eye(inputs, outputs), (1, groups))
        return cls(kernel[None, None], groups, name)

    def output_channels(self, in_channels):
        """The number of filters."""
        return self.array.shape[3]

    def build(self, input_shape):
        """Checks the number of channels."""
        channels = self.array.shape[2] * self.groups
        if input_shape[-1] != channels:
            raise ValueError(
                f"{self.name}: the filters are for {channels} channels. "
                f"Received: {input_shape[-1]} channels"
            )
        self.built = True

    def call(self, x, window=VALID, strides=(1, 1), training=None):
        """Convolves the window with the filters."""
        return convolve(x, self.merge().kernel, self.groups, strides, window)

    def merge(self, reading=None):
        """The filters themselves."""
        reading = reading or Reading()
        kernel = reading.constant(self.array.astype(self.variable_dtype))
        bias = np.zeros(self.array.shape[3], dtype_name(kernel))
        return AffineKernel(kernel, bias, self.groups)

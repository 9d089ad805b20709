"""Leaves without weights: fixed filters, and the filters of the field."""

from typing import Any, Self

import numpy as np

from repq_tf.arguments import pair, positive
from repq_tf.branches.base import Branch
from repq_tf.branches.readings import Reading
from repq_tf.branches.streams import Streams
from repq_tf.keras_api import Array, Pair, Shape, Tensor, dtype_name
from repq_tf.kernels import AffineKernel
from repq_tf.windows import VALID, Window, convolve

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

    def __init__(
        self, kernel: Array, groups: int = 1, name: str = "fixed", dtype: Any = None
    ) -> None:
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
    def depthwise(cls, filters: Array, channels: int, name: str) -> Self:
        """One filter `(kh, kw)` for every channel, or one each: `(kh, kw, channels)`."""
        filters = np.asarray(filters, np.float64)
        channels = positive(channels, "channels")
        if filters.ndim == 2:
            filters = np.repeat(filters[:, :, None], channels, axis=2)
        if filters.ndim != 3 or filters.shape[2] != channels:
            raise ValueError(
                f"filters must be (kh, kw) or (kh, kw, {channels}), one for each of the "
                f"channels. Received: shape {filters.shape}"
            )
        return cls(filters[:, :, None, :], channels, name)

    @classmethod
    def average(cls, kernel_size: Pair, channels: int, name: str = "average") -> Self:
        """The mean of every channel over a window; zeros around the image count."""
        kernel_size = pair(kernel_size, "kernel_size")
        filters = np.full(kernel_size, 1 / np.prod(kernel_size))
        return cls.depthwise(filters, channels, name)

    @classmethod
    def dirac(
        cls, in_channels: int, out_channels: int, groups: int = 1, name: str = "dirac"
    ) -> Self:
        """The identity of the channels that input and output have in common, group by group."""
        groups = positive(groups, "groups")
        counts = {"in_channels": in_channels, "out_channels": out_channels}
        for argument, count in counts.items():
            if positive(count, argument) % groups:
                raise ValueError(
                    f"{argument} must be a multiple of groups, {groups}. Received: {count}"
                )
        inputs, outputs = in_channels // groups, out_channels // groups
        kernel = np.tile(np.eye(inputs, outputs), (1, groups))
        return cls(kernel[None, None], groups, name)

    def output_channels(self, in_channels: int) -> int:
        """The number of filters."""
        return self.array.shape[3]

    def build(self, input_shape: Shape) -> None:
        """Checks the number of channels."""
        channels = self.array.shape[2] * self.groups
        if input_shape[-1] != channels:
            raise ValueError(
                f"{self.name}: the filters are for {channels} channels. "
                f"Received: {input_shape[-1]} channels"
            )
        self.built = True

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Convolves the window with the filters."""
        return convolve(x, self.merge().kernel, self.groups, strides, window)

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Each output belongs to the streams of all inputs that its filter reads."""
        rows, outputs = self.array.shape[2], streams.new(self.array.shape[3])
        for row, output in zip(*np.nonzero(self.array.any(axis=(0, 1))), strict=True):
            group = output // (len(outputs) // self.groups)
            streams.join(inputs[[group * rows + row]], outputs[[output]])
        return outputs

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """The filters themselves."""
        reading = reading or Reading()
        kernel = reading.constant(self.array.astype(self.variable_dtype))
        bias = np.zeros(self.array.shape[3], dtype_name(kernel))
        return AffineKernel(kernel, bias, self.groups)

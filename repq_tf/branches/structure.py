"""The combiners: a sum of parallel branches, and a chain of branches."""

from collections.abc import Sequence
from typing import Any

from repq_tf.branches.base import Branch, check_branches
from repq_tf.branches.readings import Reading
from repq_tf.branches.streams import Streams
from repq_tf.keras_api import Array, Pair, Shape, Tensor
from repq_tf.kernels import AffineKernel
from repq_tf.windows import VALID, Window, crop_window


class Sum(Branch):
    """Parallel branches, added; smaller kernels work on the centred crop.

    Args:
        branches: the branches, all with the same number of output channels.
        name: name of the node.
    """

    def __init__(
        self, branches: Sequence[Branch], name: str = "sum", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.children = check_branches(branches, name)
        height, width = (
            max(child.kernel_size[axis] for child in self.children) for axis in range(2)
        )
        self.kernel_size = height, width

    def output_channels(self, in_channels: int) -> int:
        """The common number of output channels."""
        channels = {child.name: child.output_channels(in_channels) for child in self.children}
        if len(set(channels.values())) > 1:
            raise ValueError(
                f"{self.name}: branches must have equal output channels. Received: {channels}"
            )
        return next(iter(channels.values()))

    def build(self, input_shape: Shape) -> None:
        """Builds the branches."""
        self.output_channels(input_shape[-1])
        for child in self.children:
            child.build(input_shape)
        self.built = True

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Adds the outputs of the branches."""
        total = None
        for child in self.children:
            inner = crop_window(window, self.kernel_size, child.kernel_size)
            y = child(x, window=inner, strides=strides, training=training)
            total = y if total is None else total + y
        return total

    def shift(self, offset: Tensor) -> bool:
        """Adds to the output of one branch."""
        return any(child.shift(offset) for child in self.children)

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """The outputs of all branches are scaled alike."""
        return streams.join(*(child.join_streams(inputs, streams) for child in self.children))

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """Adds the kernels of the branches."""
        reading = reading or Reading()
        total: Any = None
        for child in self.children:
            affine = child.merge(reading.inside(self.kernel_size, child.kernel_size))
            total = affine if total is None else total + affine
        return total


class Chain(Branch):
    """Branches one after the other, without padding between them.

    The block's zeros enter before the first link, so the features between are
    padded with what the first link makes of zeros (its bias), as they must be for
    the merged kernel to be exact at the borders. The strides belong to the last link.

    Args:
        branches: the links, first to last.
        name: name of the node.
    """

    def __init__(
        self, branches: Sequence[Branch], name: str = "chain", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.children = check_branches(branches, name)
        height, width = (
            1 + sum(child.kernel_size[axis] - 1 for child in self.children) for axis in range(2)
        )
        self.kernel_size = height, width

    def output_channels(self, in_channels: int) -> int:
        """The output channels of the last link."""
        for child in self.children:
            in_channels = child.output_channels(in_channels)
        return in_channels

    def build(self, input_shape: Shape) -> None:
        """Builds the links, each on the channels of the one before."""
        channels = input_shape[-1]
        for child in self.children:
            child.build((*input_shape[:-1], channels))
            channels = child.output_channels(channels)
        self.built = True

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Runs the links."""
        for child in self.children:
            stride = strides if child is self.children[-1] else (1, 1)
            x = child(x, window=window, strides=stride, training=training)
            window = VALID
        return x

    def shift(self, offset: Tensor) -> bool:
        """Adds to the output of the last link."""
        return self.children[-1].shift(offset)

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Each link reads what the one before makes."""
        for child in self.children:
            inputs = child.join_streams(inputs, streams)
        return inputs

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """Composes the kernels of the links."""
        reading = reading or Reading()
        merged: Any = None
        for child in self.children:
            affine = child.merge(reading.after(merged, last=child is self.children[-1]))
            merged = affine if merged is None else merged.then(affine)
        return merged

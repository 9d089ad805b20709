"""The leaves that are plain: a convolution, and the identity."""

from typing import Any

import numpy as np

from repq_tf.arguments import boolean, pair, positive
from repq_tf.branches.base import Branch
from repq_tf.branches.readings import NumpyReading, Reading
from repq_tf.branches.streams import Streams
from repq_tf.keras_api import (
    Array,
    Identifier,
    Layer,
    Pair,
    Shape,
    Tensor,
    add_parameter,
    dtype_name,
    keras,
    ops,
)
from repq_tf.kernels import AffineKernel, dilate, dilated_size
from repq_tf.windows import VALID, Window, apply_window, convolve, subsample


def check_groups(layer: Layer, in_channels: int) -> None:
    """Raises ValueError unless a layer's groups divide its input channels and filters."""
    if in_channels % layer.groups or layer.filters % layer.groups:
        raise ValueError(
            f"{layer.name}: groups must divide the {in_channels} input channels and the "
            f"{layer.filters} filters. Received: groups={layer.groups}"
        )


class Convolution(Branch):
    """A convolution with a trainable kernel `(kh, kw, in / groups, filters)`.

    Args:
        filters: number of output channels.
        kernel_size: `(kh, kw)` or one number for both.
        groups: number of groups; equal to the input channels it is depthwise.
        use_bias: whether it has a bias.
        kernel_initializer: Keras initializer of the kernel. Its fan-in counts
            `kh * kw * in / groups`.
        bias_initializer: Keras initializer of the bias.
        kernel_regularizer: Keras regularizer of the kernel.
        dilation_rate: pixels from a weight to the next, a number or `(height, width)`. The
            zeros between weights are part of the merged kernel.
        name: name of the branch; the weights are called `NAME/kernel`, `NAME/bias`.

    Example:
        >>> branch = Convolution(8, (1, 3), name="horizontal")
        >>> y = branch(keras.ops.ones((1, 5, 5, 4)))  # VALID: (1, 5, 3, 8)
        >>> branch.merge().size
        (1, 3)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair,
        groups: int = 1,
        use_bias: bool = False,
        kernel_initializer: Identifier = "he_normal",
        bias_initializer: Identifier = "zeros",
        kernel_regularizer: Identifier | None = None,
        name: str | None = None,
        dtype: Any = None,
        dilation_rate: int | Pair = 1,
    ) -> None:
        kernel_size = pair(kernel_size, "kernel_size")
        super().__init__(name=name or "conv{}x{}".format(*kernel_size), dtype=dtype)
        self._weights_size = kernel_size
        self._rates = pair(dilation_rate, "dilation_rate")
        self.kernel_size = dilated_size(kernel_size, self._rates)
        self.filters = positive(filters, "filters")
        self.groups = positive(groups, "groups")
        self.use_bias = boolean(use_bias, "use_bias")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def output_channels(self, in_channels: int) -> int:
        """The number of filters."""
        return self.filters

    def build(self, input_shape: Shape) -> None:
        """Creates the kernel and, if asked for, the bias."""
        in_channels = input_shape[-1]
        check_groups(self, in_channels)
        shape = (*self._weights_size, in_channels // self.groups, self.filters)
        self.kernel = add_parameter(
            self, "kernel", shape, self.kernel_initializer, self.kernel_regularizer
        )
        self.bias = None
        if self.use_bias:
            self.bias = add_parameter(self, "bias", (self.filters,), self.bias_initializer)
        self.built = True

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Convolves the window with the kernel."""
        kernel = dilate(ops.convert_to_tensor(self.kernel), self._rates)
        y = convolve(x, kernel, self.groups, strides, window)
        return y if self.bias is None else y + ops.cast(self.bias, y.dtype)

    def shift(self, offset: Tensor) -> bool:
        """Adds to the bias, if there is one."""
        if self.bias is None:
            return False
        self.bias.assign(self.bias + offset)
        return True

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Both sides are free."""
        outputs = streams.new(self.filters)
        streams.read(inputs, self.scale_inputs)
        streams.make(outputs, self.scale_outputs)
        return outputs

    def scale_inputs(self, gain: Array) -> None:
        """Multiplies the kernel so that the inputs count as multiplied by `gain`."""
        self._assign(self.merge(NumpyReading()).scale_inputs(gain).kernel)

    def scale_outputs(self, gain: Array) -> None:
        """Multiplies the kernel and the bias."""
        affine = self.merge(NumpyReading()).scale(gain)
        self._assign(affine.kernel)
        if self.bias is not None:
            self.bias.assign(affine.bias)

    def _assign(self, kernel: Array) -> None:
        rows, columns = self._rates
        self.kernel.assign(kernel[::rows, ::columns])

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """The kernel and the bias themselves."""
        reading = reading or Reading()
        kernel = dilate(reading.value(self.kernel), self._rates)
        if self.bias is None:
            bias = np.zeros((self.filters,), dtype_name(kernel))
        else:
            bias = reading.value(self.bias)
        return AffineKernel(kernel, bias, self.groups)


class Identity(Branch):
    """The identity; with strides, every stride-th pixel."""

    def __init__(self, name: str = "identity", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def output_channels(self, in_channels: int) -> int:
        """The number of input channels."""
        return in_channels

    def build(self, input_shape: Shape) -> None:
        """Remembers the number of channels."""
        self.channels = input_shape[-1]
        self.built = True

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Returns the window itself."""
        return subsample(apply_window(x, window), strides)

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """The output's channels are the input's."""
        return inputs

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """The depthwise kernel of ones."""
        reading = reading or Reading()
        affine = AffineKernel.identity(self.channels, self.variable_dtype)
        kernel = reading.constant(affine.kernel)
        return AffineKernel(kernel, affine.bias.astype(dtype_name(kernel)), affine.groups)

"""Transposed convolutions as blocks: ordinary convolutions of the phases of their output."""

from typing import Unpack

import numpy as np

from repq_tf.arguments import positive
from repq_tf.branches import Branch
from repq_tf.keras_api import Array, Config, Pair, Shape, Tensor, ops, register
from repq_tf.layers.blocks.plain import ConvBlock
from repq_tf.layers.depth_to_space import depth_to_space
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ConvWeights
from repq_tf.windows import Window, apply_window, convolve


@register
class ConvTransposeBlock(ConvBlock):
    """One transposed convolution: what a stock Conv2DTranspose becomes when quantized.

    Its kernel is that of an ordinary convolution of the *spread* image, which has zeros behind
    each pixel: Keras's, mirrored, with its inputs before its outputs. It computes with the
    kernels of the output's phases, as its file does. With s for `upsampling` and k for the
    kernel's size, n pixels become `n s` with "same" padding and `n s + max(k - s, 0)` with
    "valid".

    Args:
        filters: number of output channels.
        kernel_size: a number or `(height, width)`.
        upsampling: how many pixels each side of a pixel becomes; Keras's strides.
        use_bias: whether it has a bias.
        **options: those of `ConvBlock`, but for strides, groups and
            dilation; `padding` is "same" or "valid".

    Raises:
        ValueError: an argument is bad.

    Example:
        >>> y = repq_tf.layers.ConvTransposeBlock(16, 3, upsampling=2)(x)  # twice the pixels
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        upsampling: int = 2,
        use_bias: bool = True,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, use_bias, **options)
        self.upsampling = positive(upsampling, "upsampling")
        if self.padding not in ("same", "valid"):
            raise ValueError(
                f'{self.name}: padding must be "same" or "valid". Received: {self.padding!r}'
            )
        ones = {
            "strides": self.strides,
            "groups": self.groups,
            "dilation_rate": self.dilation_rate,
        }
        for name, value in ones.items():
            if value not in (1, (1, 1)):
                raise ValueError(
                    f"{self.name}: {name} must be 1 in a transposed convolution. "
                    f"Received: {value}"
                )

    def _more(self, size: int) -> int:
        """The pixels beyond n times `upsampling` that a kernel makes of n."""
        return max(size - self.upsampling, 0) if self.padding == "valid" else 0

    def _top(self, size: int) -> int:
        """The zeros before an axis of the spread image."""
        cut = max(size - self.upsampling, 0) // 2 if self.padding == "same" else 0
        return size - 1 - cut

    def window(self, spatial: Shape) -> Window:
        """The zeros around the spread image."""
        sizes = self.kernel_size
        return tuple((self._top(n), self._more(n) + n - 1 - self._top(n)) for n in sizes)

    def spread(self, x: Tensor) -> Tensor:
        """The image with zeros behind each pixel, `upsampling - 1` on each axis."""
        step, (_, height, width, channels) = self.upsampling, x.shape
        rows, columns = height or ops.shape(x)[1], width or ops.shape(x)[2]
        zeros = (0, step - 1)
        x = ops.expand_dims(x, (2, 4))
        x = ops.pad(x, ((0, 0), (0, 0), zeros, (0, 0), zeros, (0, 0)))
        return ops.reshape(x, (-1, rows * step, columns * step, channels))

    def phases(self, kernel: Tensor) -> tuple[Tensor, Window]:
        """The kernel of a convolution that makes all phases of the output, as channels.

        With s for `upsampling` and t zeros before the spread image, output `s i + r` is the sum
        over q of `x[i + q] k[s q + t - r]`: for each r a convolution of the image itself.

        Args:
            kernel: `(kh, kw, in, out)`, of the spread image.

        Returns:
            `(kernel, window)`: `(kh', kw', in, s s out)`, the phases of rows before those of
            columns, and the zeros around the image.
        """
        step, window, paddings, shape = self.upsampling, [], [], []
        for size in self.kernel_size:
            top = self._top(size)
            front = step - 1 - top % step
            count = -(-(size + front) // step)
            before = top // step
            window.append((before, -(-self._more(size) // step) + count - 1 - before))
            paddings.append((front, count * step - size - front))
            shape += [count, step]
        kernel = ops.pad(kernel, (*paddings, (0, 0), (0, 0)))
        (rows, _, columns, _), (*_, inputs, outputs) = shape, kernel.shape
        kernel = ops.flip(ops.reshape(kernel, (*shape, inputs, outputs)), (1, 3))
        kernel = ops.transpose(kernel, (0, 2, 4, 1, 3, 5))
        kernel = ops.reshape(kernel, (rows, columns, inputs, step * step * outputs))
        return kernel, tuple(window)

    @property
    def cut(self) -> Pair:
        """What is cut off the ends of the axes of the joined phases."""
        more = (self._more(n) for n in self.kernel_size)
        rows, columns = (-n % self.upsampling for n in more)
        return rows, columns

    def stored_weights(self, integers: Array, scale: Array, bias: Array) -> ConvWeights:
        """The weights of the phases."""
        kernel, _ = self.phases(ops.convert_to_tensor(integers))
        scale, bias = (np.tile(values, self.upsampling**2) for values in (scale, bias))
        return ops.convert_to_numpy(kernel), scale, bias

    # Running.

    def _convolve(self, x: Tensor, kernel: Tensor, groups: int, window: Window) -> Tensor:
        kernel, window = self.phases(kernel)
        y = depth_to_space(convolve(x, kernel, window=window), self.upsampling)
        return apply_window(y, tuple((0, -cut) for cut in self.cut))

    def _output_shape(self, input_shape: Shape) -> Shape:
        size = (
            n and n * self.upsampling + self._more(k)
            for n, k in zip(input_shape[1:3], self.kernel_size, strict=True)
        )
        return input_shape[0], *size, self.filters

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        config = super().get_config()
        del config["dilation_rate"]
        return {**config, "upsampling": self.upsampling}


@register
class ConvTransposeBNBlock(ConvTransposeBlock):
    """One transposed convolution and one batch norm, at the root.

    Args:
        **options: those of `ConvTransposeBlock`.

    Example:
        >>> y = repq_tf.layers.ConvTransposeBNBlock(16, 4, activation="relu")(x)
    """

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized convolution."""
        return self.batch_norm(super().make_branches(in_channels), name="bn")

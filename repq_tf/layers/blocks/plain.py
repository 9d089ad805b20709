"""Plain convolutions as blocks: the trivial expressions."""

from typing import Unpack

from repq_tf.arguments import boolean, pair
from repq_tf.branches import Branch
from repq_tf.keras_api import Config, Pair, Shape, Tensor, keras, ops, register
from repq_tf.kernels import dilated_size
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv


@register
class ConvBlock(ReparamConv):
    """One convolution with a bias: what a stock Conv2D becomes when quantized.

    Args:
        use_bias: whether it has a bias.
        dilation_rate: pixels from a weight to the next, a number or `(height, width)`. The
            merged kernel, and the attribute `kernel_size`, include the zeros between weights.
        **options: those of `ReparamConv`; `kernel_size` that of the weights.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        use_bias: bool = True,
        dilation_rate: int | Pair = 1,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        self._weights_size = pair(kernel_size, "kernel_size")
        self.dilation_rate = pair(dilation_rate, "dilation_rate")
        size = dilated_size(self._weights_size, self.dilation_rate)
        super().__init__(filters, size, **options)
        self.use_bias = boolean(use_bias, "use_bias")

    def make_branches(self, in_channels: int) -> Branch:
        """The convolution."""
        size, rates = self._weights_size, self.dilation_rate
        return self.convolution(size, use_bias=self.use_bias, dilation_rate=rates, name="conv")

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "use_bias": self.use_bias,
            "kernel_size": self._weights_size,
            "dilation_rate": self.dilation_rate,
        }


@register
class ConvBNBlock(ConvBlock):
    """One convolution and one batch norm: the block of plain networks.

    The batch norm is at the root: when quantized, the kernel itself is quantized and the
    batch norm follows the convolution, exactly.

    Args:
        **options: those of `ConvBlock`; without a bias by default.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        use_bias: bool = False,
        dilation_rate: int | Pair = 1,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, use_bias, dilation_rate, **options)

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized convolution."""
        return self.batch_norm(super().make_branches(in_channels), name="bn")


class _DenseOptions(ReparamConvOptions, total=False):
    kernel_size: int | Pair
    use_bias: bool


@register
class DenseBlock(ConvBlock):
    """A dense layer as a 1x1 convolution of one pixel: `(batch, features)` in and out.

    Args:
        filters: number of outputs.
        **options: those of `ConvBlock`.
    """

    def __init__(self, filters: int, **options: Unpack[_DenseOptions]) -> None:
        options["kernel_size"] = 1
        super().__init__(filters, **options)

    def build(self, input_shape: Shape) -> None:
        """Builds the 1x1 convolution."""
        if len(input_shape) != 2:
            raise ValueError(
                f"{self.name}: the input must be (batch, features). Received: shape "
                f"{tuple(input_shape)}"
            )
        super().build((input_shape[0], 1, 1, input_shape[1]))
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: input_shape[1]})

    def call(
        self,
        inputs: Tensor,
        input_step: Tensor | None = None,
        training: bool = False,
        wide: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the dense layer."""
        pixel = ops.expand_dims(inputs, (1, 2))
        y = super().call(pixel, input_step, training, wide)
        if isinstance(y, tuple):
            return ops.squeeze(y[0], (1, 2)), y[1]
        return ops.squeeze(y, (1, 2))

    compute_output_spec = ConvBlock.compute_output_spec  # with the shape of this one's output

    def _output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[0], self.filters

    def build_from_config(self, config: Config | None) -> None:
        """Builds the layer for a saved input shape, and freezes its parts."""
        if config:
            batch, *_, features = config["input_shape"]
            super().build_from_config({**config, "input_shape": (batch, features)})


@register
class DenseBNBlock(DenseBlock):
    """A dense layer and one batch norm at the root, which folds into its scales.

    Args:
        **options: those of `DenseBlock`.
    """

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized dense layer."""
        return self.batch_norm(super().make_branches(in_channels), name="bn")

"""ECBSR's edge-oriented convolution block (ACM MM 2021)."""

from typing import Unpack

from repq_tf.arguments import boolean, number
from repq_tf.branches import (
    LAPLACIAN,
    SOBEL_X,
    SOBEL_Y,
    Branch,
    Chain,
    Convolution,
    Fixed,
    Identity,
    Scale,
    Sum,
)
from repq_tf.keras_api import Config, Identifier, Pair, keras, register
from repq_tf.layers.options import BlockOptions
from repq_tf.layers.reparam_conv import ReparamConv

_FILTERS = {"sobel_x": SOBEL_X, "sobel_y": SOBEL_Y, "laplacian": LAPLACIAN}


class _Options(BlockOptions, total=False):
    kernel_size: int | Pair


@register
class ECB(ReparamConv):
    """3x3 + (1x1, 3x3) + three of (1x1, scaled edge filter) [+ x], merged into one 3x3.

    All convolutions have biases and there is no batch norm. The features behind each 1x1
    convolution are padded with what it makes of zeros, its bias, which makes
    the merged kernel exact at borders. Edge filters (Sobel's two and Laplace's) are fixed;
    a trained scale and a bias for each channel follow them.

    Args:
        multiplier: channels between the 1x1 and the 3x3, as a multiple of `filters`.
        identity: whether x is added; the input must then have `filters` channels and
            strides be 1.
        **options: those of `ReparamConv`; `kernel_size` is 3.

    Example:
        >>> y = repq_tf.layers.ECB(16)(x)
        >>> y = keras.layers.PReLU(shared_axes=[1, 2])(y)
    """

    def __init__(
        self,
        filters: int,
        multiplier: float = 2,
        identity: bool = False,
        kernel_initializer: Identifier | None = None,
        **options: Unpack[_Options],
    ) -> None:
        if options.setdefault("kernel_size", 3) not in (3, (3, 3), [3, 3]):
            raise ValueError(f"kernel_size of ECB is 3. Received: {options['kernel_size']!r}")
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.VarianceScaling(
                1 / 3, mode="fan_in", distribution="uniform"
            )
        super().__init__(filters, kernel_initializer=kernel_initializer, **options)
        self.multiplier = number(multiplier, "multiplier", above=0)
        self.identity = boolean(identity, "identity")

    def make_branches(self, in_channels: int) -> Branch:
        """The sum of the convolution, the expanded one, the edges and the identity."""
        if self.identity and (in_channels != self.filters or self.strides != (1, 1)):
            raise ValueError(
                f"{self.name}: identity=True needs {self.filters} input channels and strides "
                f"of 1. Received: {in_channels} channels, strides {self.strides}"
            )
        middle = max(round(self.multiplier * self.filters), 1)
        square = self._biased((3, 3), "expanded_square", middle, self.filters)
        branches = [
            self._biased((3, 3), "square", in_channels, self.filters),
            Chain([self._biased((1, 1), "expand", in_channels, middle), square], "expanded"),
        ]
        for name, filters in _FILTERS.items():
            first = self._biased((1, 1), f"{name}_pointwise", in_channels, self.filters)
            small = keras.initializers.RandomNormal(stddev=1e-3)
            other = keras.initializers.RandomNormal(stddev=1e-3)
            edge = Scale(
                Fixed.depthwise(filters, self.filters, name),
                small,
                use_bias=True,
                bias_initializer=other,
            )
            branches.append(Chain([first, edge], name=f"{name}_edge"))
        if self.identity:
            branches.append(Identity())
        return Sum(branches)

    def _biased(self, size: Pair, name: str, in_channels: int, filters: int) -> Convolution:
        """A convolution with a bias, drawn as PyTorch does."""
        bound = (size[0] * size[1] * in_channels / self.groups) ** -0.5
        bias = keras.initializers.RandomUniform(-bound, bound)
        return self.convolution(
            size, name, filters=filters, use_bias=True, bias_initializer=bias
        )

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        own = {"multiplier": self.multiplier, "identity": self.identity}
        return {**super().get_config(), **own}

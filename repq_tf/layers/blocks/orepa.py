"""OREPA's blocks (arXiv 2204.00826): kernels generated online, one convolution of features."""

from typing import Unpack

import numpy as np

from repq_tf.branches import Branch, Chain, Fixed, Identity, Online, Scale, Sum
from repq_tf.keras_api import Array, Identifier, Pair, keras, register
from repq_tf.layers.options import BlockOptions
from repq_tf.layers.reparam_conv import ReparamConv

# Channels that the depthwise kernel makes of each input channel before the 1x1 one.
_EXPANSION = 8


def frequency_prior(kernel_size: Pair, channels: int) -> Array:
    """One cosine filter for each output channel: `(kh, kw, channels)`.

    Channel o of the first half varies along the height, `cos(pi (h + 1/2) f / kh)` with
    frequency f = o + 1; the second half likewise along the width. The authors' code takes
    kh = kw = 3 whatever the size, and leaves odd multiples of kh in, for which the
    filter is zero (16 % of 64 channels); here those channels get the frequency after.
    """
    height, width = kernel_size
    half = channels // 2
    filters = np.empty((height, width, channels))
    for channel in range(channels):
        along_height = channel < half
        size = height if along_height else width
        frequency = (channel if along_height else channel - half) + 1
        if size > 1 and frequency % (2 * size) == size:
            frequency += 1
        wave = np.cos(np.pi * (np.arange(size) + 0.5) * frequency / size) if size > 1 else [1.0]
        filters[:, :, channel] = np.reshape(wave, (-1, 1) if along_height else (1, -1))
    return filters


def _he_uniform(slope: float = 0.0) -> keras.initializers.Initializer:
    """PyTorch's `kaiming_uniform_(a=slope)`."""
    return keras.initializers.VarianceScaling(2 / (1 + slope**2), "fan_in", "uniform")


@register
class OREPABlock(ReparamConv):
    """`BN(sum_j v_j * K_j)`: one convolution with a kernel that six branches generate.

    | branch | kernel | v starts at |
    |---|---|---|
    | `origin` | k x k | 0.25 |
    | `average` | 1x1, then the mean over k x k | 0.25 |
    | `prior` | 1x1, then a cosine filter for each channel | 0 |
    | `stacked` | `I + dW`, dW from 0, then k x k | 0.5 |
    | `pointwise` | 1x1 | 1 |
    | `separable` | depthwise k x k with 8 outputs a channel, then 1x1 | 0.5 |

    The vectors `v_j`, one number for each output channel, stand where other blocks have
    batch norms; the only batch norm is at the root. Branches are linear, so the features see
    a single convolution, in floating point too. With `kernel_size=1` the block is
    the authors' 1x1 form: `v_0 W + v_1 W_1 W_2`, of which the factor on the side with
    fewer channels starts as the identity.

    With more than 4 groups the 1x1 before the k x k has twice the input's channels.

    Args:
        **options: those of `ReparamConv`. `kernel_initializer` is He's uniform one as the
            authors draw it.

    Example:
        >>> y = repq_tf.layers.OREPABlock(64, activation="relu")(x)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        kernel_initializer: Identifier | None = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        initializer = _he_uniform() if kernel_initializer is None else kernel_initializer
        super().__init__(filters, kernel_size, kernel_initializer=initializer, **options)

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized generated kernel."""
        return self.batch_norm(self.generated(in_channels), name="bn")

    def generated(
        self,
        in_channels: int,
        kernel_size: Pair | None = None,
        pointwise: float | None = 1.0,
        name: str = "generated",
    ) -> Online:
        """The kernel as an expression without batch norm, one convolution when it runs.

        Args:
            in_channels: number of input channels.
            kernel_size: `(kh, kw)`; defaults to the block's.
            pointwise: what the 1x1 branch's vector starts at; None for no such branch.
            name: name of the branch.
        """
        filters = self.filters
        size = kernel_size or self.kernel_size
        if size == (1, 1):
            return Online(Sum(self._pointwise_terms(in_channels, filters)), name)

        def pointwise_then(last: Branch, start: float, name: str) -> Chain:
            # The vector scales the filters, which are k^2 C numbers, not the k^2 C^2 products.
            first = self.convolution((1, 1), "first", filters=filters)
            return Chain([first, _term(last, start)], name=name)

        average = Fixed.average(size, filters, "filters")
        prior = Fixed.depthwise(frequency_prior(size, filters), filters, "filters")
        terms = [
            _term(self.convolution(size, "origin", filters=filters), 0.25),
            pointwise_then(average, 0.25, "average"),
            pointwise_then(prior, 0.0, "prior"),
            _term(self._stacked(in_channels, filters, size), 0.5),
        ]
        if pointwise is not None:
            branch = self.convolution((1, 1), "pointwise", filters=filters)
            terms.append(_term(branch, pointwise))
        terms.append(_term(self._separable(in_channels, filters, size), 0.5))
        return Online(Sum(terms), name)

    def _stacked(self, in_channels: int, filters: int, size: Pair) -> Chain:
        if self.groups > 4:
            first = self.convolution((1, 1), "first", filters=2 * in_channels)
        else:
            first = self._near_identity(in_channels, "first")
        square = self.convolution(size, "square", filters=filters)
        return Chain([first, square], name="stacked")

    def _near_identity(self, channels: int, name: str) -> Sum:
        residual = self.convolution(
            (1, 1), "residual", filters=channels, kernel_initializer="zeros"
        )
        return Sum([Identity(), residual], name=name)

    def _separable(self, in_channels: int, filters: int, size: Pair) -> Chain:
        wide = in_channels * _EXPANSION
        depthwise = self.convolution(size, "depthwise", filters=wide, groups=in_channels)
        pointwise = self.convolution((1, 1), "pointwise", filters=filters)
        return Chain([depthwise, pointwise], name="separable")

    def _pointwise_terms(self, in_channels: int, filters: int) -> list[Branch]:
        origin = self.convolution((1, 1), "origin", filters=filters)
        if in_channels <= filters:
            first = self._near_identity(in_channels, "first")
            second = self.convolution((1, 1), "second", filters=filters)
        else:
            first = self.convolution((1, 1), "first", filters=filters)
            second = self._near_identity(filters, "second")
        return [_term(origin, 1.0), _term(Chain([first, second], name="product"), 0.5)]


def _term(branch: Branch, start: float) -> Scale:
    return Scale(branch, keras.initializers.Constant(start))


class _StemOptions(BlockOptions, total=False):
    kernel_initializer: Identifier | None


@register
class OREPAStem(OREPABlock):
    """The linear deep stem: `BN` of a k x k kernel composed of 3x3 OREPA kernels.

    Three 3x3 kernels make a 7x7 one. The composition is a full convolution, so that the
    block equals the 3x3 convolutions run one after the other; the authors' code correlates
    instead, which composes mirrored kernels.

    Args:
        kernel_size: odd, at least 3, the same for both axes; 7 as a rule.
        **options: those of `OREPABlock`.
    """

    def __init__(
        self, filters: int, kernel_size: int | Pair = 7, **options: Unpack[_StemOptions]
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        height, width = self.kernel_size
        if height != width or height % 2 == 0 or height < 3:
            raise ValueError(
                f"kernel_size must be odd, at least 3, and square. Received: {kernel_size!r}"
            )

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized chain of generated 3x3 kernels."""
        links: list[Branch] = []
        for index in range((self.kernel_size[0] - 1) // 2):
            channels = self.filters if links else in_channels
            links.append(self.generated(channels, (3, 3), name=f"link{index}"))
        return self.batch_norm(Online(Chain(links), "generated"), name="bn")


@register
class OREPARepVGGBlock(OREPABlock):
    """RepVGG's block whose k x k convolution is generated: `BN(K) + BN(1x1) + BN(x)`.

    K has OREPA's branches but for the 1x1 one, which the block has of its own. The identity
    branch is there when the input and the output have equal shapes.

    Args:
        **options: those of `OREPABlock`; the initializer is He's uniform one with slope 1.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        kernel_initializer: Identifier | None = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        if kernel_initializer is None:
            kernel_initializer = _he_uniform(slope=1.0)
        super().__init__(filters, kernel_size, kernel_initializer, **options)

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized generated kernel, 1x1 convolution and, if shapes allow, input."""
        generated = self.generated(in_channels, pointwise=None)
        branches = [
            self.batch_norm(generated),
            self.batch_norm(self.convolution((1, 1), "pointwise")),
        ]
        if in_channels == self.filters and self.strides == (1, 1):
            branches.append(self.batch_norm(Identity()))
        return Sum(branches)

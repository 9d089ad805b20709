"""The diverse branch block (arXiv 2103.13425)."""

from typing import Unpack

from repq_tf.arguments import boolean, positive
from repq_tf.branches import Branch, Chain, Fixed, Identity, Sum
from repq_tf.keras_api import Config, Pair, register
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv


@register
class DiverseBranchBlock(ReparamConv):
    """`BN(k x k) + BN(1x1) + BN(k x k of BN(1x1)) + BN(mean of BN(1x1))`, one k x k merged.

    The 1x1 before the k x k starts as the identity where it keeps the number of channels.
    A depthwise block, which has as many groups as channels and filters, has no 1x1 branch,
    doubles the channels before its second k x k, and averages the input itself.

    The inner batch norms see the padded features: a border pixel is `beta - mean * gain`
    with the very moments that the batch is normalized by. The authors' code pads with the
    running ones in training, so that its borders differ from those of the merged kernel.

    Args:
        internal_channels: channels between the 1x1 and the k x k; default those of the
            input, twice as many in a depthwise block.
        single_init: whether all of the initial sum comes from the k x k branch, whose gamma
            starts at 1 and the others' at 0.
        **options: those of `ReparamConv`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        internal_channels: int | None = None,
        single_init: bool = False,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        if internal_channels is not None:
            positive(internal_channels, "internal_channels")
        self.internal_channels = internal_channels
        self.single_init = boolean(single_init, "single_init")

    def make_branches(self, in_channels: int) -> Branch:
        """The four normalized branches; three in a depthwise block."""
        depthwise = in_channels == self.groups == self.filters
        internal = self.internal_channels or in_channels * (2 if depthwise else 1)
        other = {"gamma_initializer": "zeros"} if self.single_init else {}
        square = self.convolution(name="square")
        mean = Fixed.average(self.kernel_size, self.filters)
        if not depthwise:
            first = self.batch_norm(self.convolution((1, 1), name="first"))
            mean = Chain([first, mean], name="averaged")
        second = self.convolution(name="square")
        branches = [
            self.batch_norm(square),
            self.batch_norm(
                Chain([self._first(in_channels, internal), second], name="stacked"),
                **other,
            ),
            self.batch_norm(mean, **other),
        ]
        if not depthwise:
            pointwise = self.convolution((1, 1), name="pointwise")
            branches.append(self.batch_norm(pointwise, **other))
        return Sum(branches)

    def _first(self, in_channels: int, internal: int) -> Branch:
        """The 1x1 before the k x k; `I + dW` with dW from 0 where it can be."""
        options = {"filters": internal}
        if internal != in_channels:
            return self.batch_norm(self.convolution((1, 1), "first", **options))
        residual = self.convolution((1, 1), "residual", kernel_initializer="zeros", **options)
        return self.batch_norm(Sum([Identity(), residual], name="first"))

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        own = {"internal_channels": self.internal_channels, "single_init": self.single_init}
        return {**super().get_config(), **own}

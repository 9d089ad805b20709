"""MobileOne's block (arXiv 2206.04040)."""

from typing import Unpack

from repq_tf.arguments import positive
from repq_tf.branches import Branch, Identity, Sum
from repq_tf.keras_api import Config, Pair, register
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv


@register
class MobileOneBlock(ReparamConv):
    """`sum of k BN(conv) + BN(1x1) + BN(x)`, merged into one convolution.

    The 1x1 ("scale") branch is there when the kernel is larger than 1x1, the identity
    ("skip") when the input and the output have equal shapes. With `groups` equal to the
    channels the block is depthwise.

    Args:
        branches: k, the number of over-parameterized convolutions.
        **options: those of `ReparamConv`.

    Example, a depthwise and a pointwise block as MobileOne stacks them:
        >>> x = MobileOneBlock(64, groups=64, branches=4, activation="relu")(x)
        >>> x = MobileOneBlock(128, kernel_size=1, branches=4, activation="relu")(x)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        branches: int = 1,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        self.branches = positive(branches, "branches")

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized convolutions and, if shapes allow, the normalized input."""
        branches = [
            self.batch_norm(self.convolution(name=f"conv{index}"))
            for index in range(self.branches)
        ]
        if self.kernel_size != (1, 1):
            branches.append(self.batch_norm(self.convolution((1, 1), name="scale")))
        if in_channels == self.filters and self.strides == (1, 1):
            branches.append(self.batch_norm(Identity(), name="skip_bn"))
        return Sum(branches)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "branches": self.branches}

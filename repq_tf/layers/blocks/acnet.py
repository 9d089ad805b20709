"""ACNet's asymmetric convolution block (arXiv 1908.03930)."""

from typing import Unpack

from repq_tf.branches import Branch, Sum
from repq_tf.keras_api import Config, Identifier, Pair, register
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv


@register
class ACBlock(ReparamConv):
    """`BN(k x k) + BN(1 x k) + BN(k x 1)`, merged into one k x k convolution.

    The asymmetric kernels strengthen the skeleton (the central cross) of the square one.
    There is no batch norm after the sum.

    Args:
        gamma_initializer: of the three batch norms; the authors use 1 on ImageNet and
            1/3 on CIFAR, so that the sum starts with the scale of one branch.
        **options: those of `ReparamConv`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        gamma_initializer: Identifier = "ones",
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        self.gamma_initializer = gamma_initializer

    def make_branches(self, in_channels: int) -> Branch:
        """The three normalized convolutions."""
        height, width = self.kernel_size
        shapes = {"square": (height, width), "horizontal": (1, width), "vertical": (height, 1)}
        return Sum(
            [
                self.batch_norm(
                    self.convolution(shape, name=name),
                    gamma_initializer=self.gamma_initializer,
                )
                for name, shape in shapes.items()
            ]
        )

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "gamma_initializer": self.gamma_initializer}

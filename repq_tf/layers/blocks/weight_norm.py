"""Kernels as a direction times a length: DiracNets and weight normalization."""

from typing import Unpack

from repq_tf.arguments import boolean
from repq_tf.branches import Branch, Fixed, Scale, Sum, UnitNorm
from repq_tf.keras_api import Config, Pair, keras, register
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv


class _NormedConv(ReparamConv):
    """A kernel with normalized filters, and a batch norm after it."""

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        use_batch_norm: bool = True,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        self.use_batch_norm = boolean(use_batch_norm, "use_batch_norm")

    def _normed(self, length: float) -> Scale:
        direction = UnitNorm(self.convolution(name="direction"))
        return Scale(direction, keras.initializers.Constant(length), name="length")

    def _rooted(self, branch: Branch) -> Branch:
        return self.batch_norm(branch, name="bn") if self.use_batch_norm else branch

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "use_batch_norm": self.use_batch_norm}


@register
class WeightNormConv(_NormedConv):
    """`W = g V / |V|` for each filter: weight normalization (arXiv 1602.07868).

    Args:
        use_batch_norm: whether a batch norm follows; without one, quantized training
            needs a low learning rate.
        **options: those of `ReparamConv`.
    """

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized kernel times its length."""
        return self._rooted(self._normed(1.0))


@register
class DiracConv(_NormedConv):
    """`W = a I + b V / |V|` for each filter: DiracNets (arXiv 1706.00388).

    a starts at 1 and b at 0.1, so that a deep network starts near the identity. The
    identity maps the channels that input and output have in common. The authors train a and
    b without weight decay.

    Args:
        use_batch_norm: whether a batch norm follows.
        **options: those of `ReparamConv`.
    """

    def make_branches(self, in_channels: int) -> Branch:
        """The scaled identity and the scaled normalized kernel."""
        dirac = Fixed.dirac(in_channels, self.filters, self.groups)
        return self._rooted(Sum([Scale(dirac), self._normed(0.1)]))

"""RepVGG's block (arXiv 2101.03697)."""

from repq_tf.branches import Identity, Sum
from repq_tf.keras_api import register
from repq_tf.layers.reparam_conv import ReparamConv


@register
class RepVGGBlock(ReparamConv):
    """`BN(k x k) + BN(1 x 1) + BN(x)`, merged into one k x k convolution.

    The identity branch is there when the input and the output have equal shapes: equal
    channels and stride 1.

    Args:
        **options: those of `ReparamConv`.

    Example:
        >>> x = keras.Input((32, 32, 16))
        >>> y = repq_tf.layers.RepVGGBlock(16, activation="relu")(x)
    """

    def make_branches(self, in_channels):
        """The two normalized convolutions and, if shapes allow, the normalized input."""
        branches = [
            self.batch_norm(self.convolution(name="square")),
            self.batch_norm(self.convolution((1, 1), name="pointwise")),
        ]
        if in_channels == self.filters and self.strides == (1, 1):
            branches.append(self.batch_norm(Identity()))
        return Sum(branches)

"""QARepVGG's block (arXiv 2212.01593)."""

from typing import Unpack

from repq_tf.branches import Branch, Identity, Sum
from repq_tf.keras_api import Config, Pair, register
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv

# Which of the 1x1 convolution and the identity have a batch norm, and whether the sum has.
_VARIANTS = {
    "S1": (True, True, False),
    "S2": (True, False, False),
    "S3": (False, False, False),
    "S4": (False, False, True),
}


@register
class QARepVGGBlock(ReparamConv):
    """`BN(BN(k x k) + 1x1 + x)`: RepVGG's block made friendly to quantization.

    The batch norm of RepVGG's identity branch amplifies nearly dead channels, and batch
    norms of all three branches inflate the variance of the sum; both make outliers
    in the merged kernel. The paper's ablation step by step, top-1 of RepVGG-A0 in floating
    point and after 8-bit post-training quantization:

    | variant | expression | float / int8 |
    |---|---|---|
    | `S1` | `BN(k x k) + BN(1x1) + BN(x)`, plain L2 | 71.7 / 61.6 |
    | `S2` | `BN(k x k) + BN(1x1) + x` | 70.7 / 62.5 |
    | `S3` | `BN(k x k) + 1x1 + x` | 70.1 / 69.5 |
    | `S4` | `BN(BN(k x k) + 1x1 + x)` | 72.2 / 70.4 |

    The identity is there when the input and the output have equal shapes.

    Args:
        variant: "S4", QARepVGG itself, or one of the steps to it.
        **options: those of `ReparamConv`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        variant: str = "S4",
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        if not isinstance(variant, str) or variant not in _VARIANTS:
            raise ValueError(
                f"variant must be one of {', '.join(_VARIANTS)}. Received: {variant!r}"
            )
        self.variant = variant

    def make_branches(self, in_channels: int) -> Branch:
        """The sum of the branches, normalized as the variant says."""
        normal_pointwise, normal_identity, normal_sum = _VARIANTS[self.variant]
        pointwise = self.convolution((1, 1), name="pointwise")
        branches = [
            self.batch_norm(self.convolution(name="square")),
            self.batch_norm(pointwise) if normal_pointwise else pointwise,
        ]
        if in_channels == self.filters and self.strides == (1, 1):
            branches.append(self.batch_norm(Identity()) if normal_identity else Identity())
        return self.batch_norm(Sum(branches), name="bn") if normal_sum else Sum(branches)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "variant": self.variant}

"""ExpandNets' linear expansions of a convolution (arXiv 1811.10495)."""

from typing import Unpack

from repq_tf.arguments import boolean, positive
from repq_tf.branches import Branch, Chain
from repq_tf.keras_api import Config, Pair, register
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv

_EXPANSIONS = ("CL", "CK")


@register
class ExpandNet(ReparamConv):
    """A convolution trained as a chain of linear ones, without nonlinearity between.

    | expansion | chain |
    |---|---|
    | `CL` | 1x1, k x k, 1x1, of `rate` times the input's and the output's channels |
    | `CK` | as many 3x3 as make k x k (two for 5x5), of `rate` times the input's channels |

    A batch norm follows the chain, as it follows the convolutions that were expanded.

    Args:
        expansion: "CL" or "CK"; CK needs an odd square kernel of at least 5x5.
        rate: the expansion rate; the authors use 4.
        use_bias: whether every convolution of the chain has a bias.
        use_batch_norm: whether a batch norm follows.
        **options: those of `ReparamConv`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        expansion: str = "CL",
        rate: int = 4,
        use_bias: bool = False,
        use_batch_norm: bool = True,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        if expansion not in _EXPANSIONS:
            raise ValueError(
                f"expansion must be one of {', '.join(_EXPANSIONS)}. Received: {expansion!r}"
            )
        height, width = self.kernel_size
        if expansion == "CK" and (height != width or height % 2 == 0 or height < 5):
            raise ValueError(
                "kernel_size must be odd, square and at least 5 with expansion='CK'. "
                f"Received: {kernel_size!r}"
            )
        self.expansion = expansion
        self.rate = positive(rate, "rate")
        self.use_bias = boolean(use_bias, "use_bias")
        self.use_batch_norm = boolean(use_batch_norm, "use_batch_norm")

    def make_branches(self, in_channels: int) -> Branch:
        """The chain, normalized if it is to be."""
        if self.expansion == "CL":
            sizes = [(1, 1), self.kernel_size, (1, 1)]
            filters = [self.rate * in_channels, self.rate * self.filters, self.filters]
        else:
            count = (self.kernel_size[0] - 1) // 2
            sizes = [(3, 3)] * count
            filters = [self.rate * in_channels] * (count - 1) + [self.filters]
        links = [
            self.convolution(size, f"conv{index}", filters=channels, use_bias=self.use_bias)
            for index, (size, channels) in enumerate(zip(sizes, filters, strict=True))
        ]
        chain = Chain(links)
        return self.batch_norm(chain, name="bn") if self.use_batch_norm else chain

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        names = ("expansion", "rate", "use_bias", "use_batch_norm")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

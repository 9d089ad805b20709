"""RepVGG's block (arXiv 2101.03697)."""

from typing import Unpack

from repq_tf.arguments import boolean, number
from repq_tf.branches import Branch, Identity, Sum
from repq_tf.keras_api import Config, Pair, Tensor, ops, register
from repq_tf.kernels import centre_offset
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv

_TINY = 1e-12  # a channel of two gammas 0 has no energy


@register
class RepVGGBlock(ReparamConv):
    """`BN(k x k) + BN(1 x 1) + BN(x)`, merged into one k x k convolution.

    The identity branch is there when the input and the output have equal shapes: equal
    channels and stride 1.

    The authors' custom L2 regularizes the merged kernel instead of the branches': with
    K and P the square and the pointwise kernel, t their batch norms' gains (without
    gradient) and c the centre tap,

        custom_l2 / 2 * (sum K^2 - sum K_c^2 + sum (K_c t_K + P t_P)^2 / (t_K^2 + t_P^2)).

    The gains are those of the moving statistics before the batch has moved them; the authors'
    example takes them after the forward pass, one update later. Exclude those kernels
    from the optimizer's weight decay then. QARepVGG (arXiv 2212.01593)
    found the denominator to make the merged network hard to quantize.

    Without batch norms it is `k x k + 1 x 1 + x` with one bias, the form of super-resolution
    networks, where batch norms cost quality (EDSR, arXiv 1707.02921).

    Args:
        custom_l2: the weight of that loss in training; 0 for none.
        custom_l2_denominator: whether it has its denominator.
        use_batch_norm: whether the branches have batch norms.
        **options: those of `ReparamConv`.

    Example:
        >>> x = keras.Input((32, 32, 16))
        >>> y = repq_tf.layers.RepVGGBlock(16, activation="relu")(x)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        custom_l2: float = 0.0,
        custom_l2_denominator: bool = True,
        use_batch_norm: bool = True,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        number(custom_l2, "custom_l2", least=0)
        if custom_l2 and not use_batch_norm:
            raise ValueError(
                "custom_l2 must be 0 without batch norms, of whose gains it is made. "
                f"Received: {custom_l2!r}"
            )
        self.custom_l2 = custom_l2
        self.custom_l2_denominator = boolean(custom_l2_denominator, "custom_l2_denominator")
        self.use_batch_norm = boolean(use_batch_norm, "use_batch_norm")

    def make_branches(self, in_channels: int) -> Branch:
        """The two convolutions and, if shapes allow, the input, each of them normalized."""
        branches = [
            self.convolution(use_bias=not self.use_batch_norm, name="square"),
            self.convolution((1, 1), name="pointwise"),
        ]
        if in_channels == self.filters and self.strides == (1, 1):
            branches.append(Identity())
        if self.use_batch_norm:
            branches = [self.batch_norm(branch) for branch in branches]
        return Sum(branches)

    def call(
        self,
        inputs: Tensor,
        input_step: Tensor | None = None,
        training: bool = False,
        wide: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the block; in training it adds the custom L2 loss."""
        if training and self.custom_l2:
            self.add_loss(0.5 * self.custom_l2 * self._kernel_energy())
        return super().call(inputs, input_step, training, wide)

    compute_output_spec = ReparamConv.compute_output_spec  # the loss does not change it

    def _kernel_energy(self) -> Tensor:
        square, pointwise = self.expression.children[:2]
        gains = [ops.stop_gradient(node.gain_and_shift()[0]) for node in (square, pointwise)]
        kernel = ops.convert_to_tensor(square.child.kernel)
        row, column = (centre_offset(size, 1) for size in self.kernel_size)
        centre = kernel[row, column]
        merged = (
            centre * gains[0] + ops.convert_to_tensor(pointwise.child.kernel)[0, 0] * gains[1]
        )
        energy = ops.sum(ops.square(merged), axis=0)
        if self.custom_l2_denominator:
            energy = energy / (ops.square(gains[0]) + ops.square(gains[1]) + _TINY)
        return ops.sum(ops.square(kernel)) - ops.sum(ops.square(centre)) + ops.sum(energy)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        names = ("custom_l2", "custom_l2_denominator", "use_batch_norm")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

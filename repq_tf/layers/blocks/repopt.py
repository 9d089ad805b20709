"""RepOpt's constant-scale block (arXiv 2205.15242)."""

from typing import Any, Unpack

import numpy as np

from repq_tf.arguments import boolean, number
from repq_tf.branches import Branch, Identity, NumpyReading, Scale, Sum
from repq_tf.keras_api import Array, Config, Pair, keras, register
from repq_tf.kernels import AffineKernel
from repq_tf.layers.options import ReparamConvOptions
from repq_tf.layers.reparam_conv import ReparamConv


@register
class CSLABlock(ReparamConv):
    """`BN(s * (k x k) + t * (1 x 1) [+ u * x])`: constant-scale linear addition.

    With constant s and t, training this block is training one plain convolution whose
    gradients are multiplied by constants, which is what `repq_tf.optimizers.RepOptimizer`
    does. RepOpt's search stage trains the scales on a small set (`trainable_scales=True`);
    its target stage takes them from there. The identity is there when the input and the
    output have equal shapes. As in the authors' code, u is trained in both stages: without
    it the identity would have no part in the equal plain convolution's gradients.

    Args:
        scales: what s and t start at.
        identity_scale: what u starts at.
        trainable_scales: whether s and t are trained.
        **options: those of `ReparamConv`.

    Example:
        >>> x = keras.Input((32, 32, 16))
        >>> y = repq_tf.layers.CSLABlock(16, scales=0.5, activation="relu")(x)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        scales: float = 1.0,
        identity_scale: float = 1.0,
        trainable_scales: bool = False,
        **options: Unpack[ReparamConvOptions],
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        self.scales = scales
        self.identity_scale = number(identity_scale, "identity_scale")
        self.trainable_scales = boolean(trainable_scales, "trainable_scales")

    def make_branches(self, in_channels: int) -> Branch:
        """The normalized sum of scaled convolutions and, if shapes allow, the input."""

        def scaled(kernel_size: Pair, name: str) -> Scale:
            start = keras.initializers.Constant(self.scales)
            conv = self.convolution(kernel_size, name=name)
            return Scale(conv, start, trainable=self.trainable_scales)

        branches = [scaled(self.kernel_size, "square"), scaled((1, 1), "pointwise")]
        if in_channels == self.filters and self.strides == (1, 1):
            start = keras.initializers.Constant(self.identity_scale)
            branches.append(Scale(Identity(), start))
        return self.batch_norm(Sum(branches), name="bn")

    def multiplier(self, power: int = 2) -> Array:
        """What the gradients of the equal plain convolution are multiplied by.

        The plain kernel is `W = s K + t P + u I`, P and the identity I at the centre tap. A
        step of SGD along the gradients `s G`, `t G` and `G` of K, P and u moves W along

            (s^2 + [centre tap] (t^2 + [diagonal] 1)) * G,

        G being the gradient of W, and the same holds with momentum and weight decay (on K, P
        and u; W). Optimizers whose steps do not depend on the gradient's scale, as Adam's,
        move K, P and u all alike, hence W by `|s| + [centre tap] (|t| + [diagonal] 1)`
        times such a step: power 1, and it is the steps that are multiplied. For them the
        plain convolution equals the block but for what Adam's epsilon does.

        Args:
            power: 2 for SGD, 1 for the others.

        Returns:
            A NumPy array of the kernel's shape `(kh, kw, in_channels / groups, filters)`.
        """
        reading = NumpyReading()
        total: Any = None
        for scaled in self.inner.children:
            affine, gain = scaled.child.merge(reading), 1.0
            if not isinstance(scaled.child, Identity):
                gain = np.abs(reading.value(scaled.gain)) ** power
            ones = AffineKernel(np.ones_like(affine.kernel), affine.bias, affine.groups)
            total = ones.scale(gain) if total is None else total + ones.scale(gain)
        return total.kernel

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        names = ("scales", "identity_scale", "trainable_scales")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

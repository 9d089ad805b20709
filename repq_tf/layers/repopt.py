"""RepOpt's constant-scale block (arXiv 2205.15242)."""

from repq_tf.branches import Identity, Scale, Sum
from repq_tf.keras_api import keras, register
from repq_tf.layers.reparam_conv import ReparamConv


@register
class CSLABlock(ReparamConv):
    """`BN(s * (k x k) + t * (1 x 1) [+ u * x])`: constant-scale linear addition.

    With constant scales, training this block is training a plain convolution whose gradients
    are multiplied by constants (`repq_tf.optimizers.RepOptimizer`). RepOpt's search stage
    trains the scales on a small set (`trainable_scales=True`); its target stage
    takes them from there. The identity is there when the input and the output have equal
    shapes.

    Args:
        scales: what s and t start at. RepOpt's search starts
            at `sqrt(2 / l)` for the l-th block of a stage.
        identity_scale: what u starts at.
        trainable_scales: whether the scales are trained.
        **options: those of `ReparamConv`.
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        scales=1.0,
        identity_scale=1.0,
        trainable_scales=False,
        **options,
    ):
        super().__init__(filters, kernel_size, **options)
        self.scales = scales
        self.identity_scale = identity_scale
        self.trainable_scales = trainable_scales

    def make_branches(self, in_channels):
        """The normalized sum of scaled convolutions and, if shapes allow, the input."""
        branches = [
            self._scaled(self.convolution(name="square"), self.scales),
            self._scaled(self.convolution((1, 1), name="pointwise"), self.scales),
        ]
        if in_channels == self.filters and self.strides == (1, 1):
            branches.append(self._scaled(Identity(), self.identity_scale))
        return self.batch_norm(Sum(branches), name="bn")

    def _scaled(self, branch, start):
        return Scale(
            branch, keras.initializers.Constant(start), trainable=self.trainable_scales
        )

    def get_config(self):
        """The arguments of the constructor."""
        names = ("scales", "identity_scale", "trainable_scales")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

"""Upsampling of a stored tensor, in the integer runtime's arithmetic."""

from typing import Unpack

from repq_tf.arguments import pair
from repq_tf.arithmetic.interpolation import interpolate
from repq_tf.arithmetic.runtimes import interpolate_of
from repq_tf.arithmetic.sums import whole
from repq_tf.keras_api import Config, Layer, LayerOptions, Pair, Tensor, ops, register

INTERPOLATIONS = ("nearest", "bilinear")


@register
class QuantizedUpSampling2D(Layer):
    """Upsampling to a multiple of the size, on the grid of its input.

    Pixels are squares: `y[f i + p]` lies at `i + (p + 1/2) / f - 1/2`, for each axis; beyond
    the outermost centres the outermost pixels go on. Inference is that of
    `repq_tf.arithmetic.interpolation`.

    Args:
        size: f, a whole number or `(height, width)`.
        interpolation: "nearest" or "bilinear".
        input_zero_point: the integer of the input's container that stands for 0.

    Input: features and the step of their grid. Output: features.
    """

    def __init__(
        self,
        size: int | Pair = 2,
        interpolation: str = "nearest",
        input_zero_point: int = 0,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.size = pair(size, "size")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {INTERPOLATIONS}. Received: {interpolation!r}"
            )
        self.interpolation = interpolation
        self.input_zero_point = input_zero_point

    def values(self, x: Tensor) -> Tensor:
        """The interpolation in floating point."""
        if self.interpolation == "nearest":
            return ops.repeat(ops.repeat(x, self.size[0], axis=1), self.size[1], axis=2)
        return interpolate(x, self.size)

    def call(
        self, x: Tensor, step: Tensor, training: bool = False, runtime: str = "xnnpack"
    ) -> Tensor:
        """Interpolates: the integer runtime's way, in training in floating point."""
        if training or self.interpolation == "nearest":
            return self.values(x)
        levels = interpolate_of(runtime)(whole(x, step), self.size, self.input_zero_point)
        return ops.cast(levels, step.dtype) * step

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        names = ("size", "interpolation", "input_zero_point")
        return {**config, **{name: getattr(self, name) for name in names}}

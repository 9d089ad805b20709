"""Upsampling of a stored tensor, in the integer runtime's arithmetic."""

from repq_tf.arguments import pair
from repq_tf.keras_api import Layer, ops, register

INTERPOLATIONS = ("nearest", "bilinear")
_ONE = 2**11  # of the runtime's weights


@register
class QuantizedUpSampling2D(Layer):
    """Upsampling to a multiple of the size, on the grid of its input.

    Pixels are squares: `y[f i + p]` lies at `i + (p + 1/2) / f - 1/2`, for each axis; beyond
    the outermost centres the outermost pixels go on. Bilinear interpolation weighs with 11
    bits an axis, `w = round(2048 fraction)`, and rounds once:
    `n = (sum of w_y w_x n_yx + 2^21) >> 22`.

    Args:
        size: f, a whole number or `(height, width)`.
        interpolation: "nearest" or "bilinear".

    Input: features and the step of their grid. Output: features.
    """

    def __init__(self, size=2, interpolation="nearest", **kwargs):
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.size = pair(size, "size")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {INTERPOLATIONS}. Received: {interpolation!r}"
            )
        self.interpolation = interpolation

    def values(self, x):
        """The interpolation in floating point."""
        if self.interpolation == "nearest":
            return ops.repeat(ops.repeat(x, self.size[0], axis=1), self.size[1], axis=2)
        return self._interpolate(x, 1.0)

    def call(self, x, step, training=False):
        """Interpolates: the integer runtime's way, in training in floating point."""
        if training or self.interpolation == "nearest":
            return self.values(x)
        levels = ops.cast(ops.round(ops.cast(x, step.dtype) / step), "int32")
        levels = ops.right_shift(self._interpolate(levels, _ONE) + _ONE**2 // 2, 22)
        return ops.cast(levels, step.dtype) * step

    def _interpolate(self, x, one):
        """The interpolation times `one^2`, with weights that are multiples of `1 / one`."""
        for axis, factor in ((2, self.size[1]), (1, self.size[0])):
            x = _interpolate(x, axis, factor, one)
        return x

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, "size": self.size, "interpolation": self.interpolation}


def _interpolate(x, axis, factor, one):
    def part(start, stop):
        return x[(*[slice(None)] * axis, slice(start, stop))]

    before = ops.concatenate([part(None, 1), part(None, -1)], axis)
    after = ops.concatenate([part(1, None), part(-1, None)], axis)
    phases = []
    for phase in range(factor):
        place = (phase + 0.5) / factor - 0.5
        weight = abs(place) * one
        weight = weight if isinstance(one, float) else round(weight)
        phases.append(x * (one - weight) + (before if place < 0 else after) * weight)
    shape = list(ops.shape(x))
    shape[axis] *= factor
    return ops.reshape(ops.stack(phases, axis=axis + 1), shape)

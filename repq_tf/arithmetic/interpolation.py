"""Bilinear interpolation of images, in floating point and as the runtime computes it."""

from repq_tf.keras_api import Pair, Tensor, ops

_ONE = 2**11  # of the runtime's weights


def interpolate(x: Tensor, size: Pair, one: float = 1.0) -> Tensor:
    """Enlarges images by whole factors.

    Args:
        x: images `(batch, height, width, channels)`.
        size: the factors `(height, width)`.
        one: what a weight of 1 is: weights are multiples of `1 / one`, unless it is a float.

    Returns:
        The interpolation times `one^2`.
    """
    for axis, factor in ((2, size[1]), (1, size[0])):
        x = _along(x, axis, factor, one)
    return x


def interpolate_levels(levels: Tensor, size: Pair) -> Tensor:
    """Enlarges images of levels (int32) by whole factors.

    Weights have 11 bits an axis, `w = round(2048 fraction)`, and are rounded once:
    `n = (sum of w_y w_x n_yx + 2^21) >> 22`.
    """
    return ops.right_shift(interpolate(levels, size, _ONE) + _ONE**2 // 2, 22)


def _along(x: Tensor, axis: int, factor: int, one: float) -> Tensor:
    def part(start: int | None, stop: int | None) -> Tensor:
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

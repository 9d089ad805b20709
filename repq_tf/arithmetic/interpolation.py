"""Bilinear interpolation of images, in floating point and as the runtime computes it."""

import numpy as np

from repq_tf.keras_api import Array, Pair, Tensor, ops

_ONE = 2**11  # of the runtime's weights
_PLACE = 2**10  # a pixel, of the reference kernels' places


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


def interpolate_fixed(levels: Tensor, size: Pair, zero_point: int) -> Tensor:
    """The same in the reference kernels, of integers with their zero point.

    Places have 10 bits, `p = y step + step / 2 - 512` with `step = (1024 n + o / 2) // o` of n
    pixels that become o; weights are those of the two nearest, and sums are rounded once, half
    away from zero: by 2^20.

    Args:
        levels: `(batch, height, width, channels)`, int32.
        size: the factors `(height, width)`.
        zero_point: the integer that stands for 0.
    """
    x = levels + zero_point
    for axis, factor in ((1, size[0]), (2, size[1])):
        low, high, weight = _fixed_places(ops.shape(x)[axis], factor)
        shape = [1, 1, 1, 1]
        shape[axis] = len(weight)
        weight = np.reshape(weight, shape)
        x = ops.take(x, low, axis) * (_PLACE - weight) + ops.take(x, high, axis) * weight
    away = ops.sign(x) * ops.right_shift(ops.abs(x) + _PLACE**2 // 2, 20)
    return away - zero_point


def _fixed_places(count: int, factor: int) -> tuple[Array, Array, Array]:
    """The two pixels that each new one lies between, and the weight of the second."""
    outputs = count * factor
    step = (_PLACE * count + outputs // 2) // outputs
    places = np.arange(outputs) * step + step // 2 - _PLACE // 2

    def whole(values: Array) -> Array:  # towards zero
        return np.sign(values) * (np.abs(values) // _PLACE)

    low = np.clip(whole(places), 0, count - 1)
    high = np.minimum(whole(places + _PLACE - 1), count - 1)
    return low, high, (places - _PLACE * low).astype(np.int32)


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

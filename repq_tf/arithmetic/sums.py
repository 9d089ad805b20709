"""The integer runtimes' arithmetic of sums, products and means."""

import math

from repq_tf.arithmetic.rescale import (
    floor_log2,
    has_64_bits,
    multiplier,
    multiply_twice,
    rescale_fixed,
    shift_right,
    wide_dtype,
)
from repq_tf.keras_api import Tensor, ops


def whole(x: Tensor, step: Tensor) -> Tensor:
    """The integers of a tensor on a grid of the given step, int32."""
    return ops.cast(ops.round(ops.cast(x, step.dtype) / step), "int32")


def add(left: Tensor, right: Tensor, step_a: Tensor, step_b: Tensor, step: Tensor) -> Tensor:
    """The levels of a sum, not clipped yet, in fixed point.

    With `r_a = step_a / step` and `shift = 20 - floor(log2(max(r_a, r_b)))`,
    `n = (n_a round(r_a 2^shift) + n_b round(r_b 2^shift) + 2^(shift-1)) >> shift`.

    Args:
        left: integers, int32.
        right: integers, int32.
        step_a: the step of `left`, `()`.
        step_b: the step of `right`, `()`.
        step: the step of the sum, `()`.
    """
    ratios = ops.stack([step_a, step_b]) / step
    shift = 20 - floor_log2(ops.max(ratios), range(-10, 8))
    power = ops.cast(ops.left_shift(ops.ones_like(shift), shift), ratios.dtype)
    factors = ops.cast(ops.round(ratios * power), "int32")
    half = ops.left_shift(ops.ones_like(shift), shift - 1)
    total = left * factors[0] + right * factors[1] + half
    return ops.cast(ops.right_shift(total, shift), ratios.dtype)


def add_wide(
    left: Tensor, right: Tensor, step_a: Tensor, step_b: Tensor, step: Tensor
) -> Tensor:
    """The levels of a sum of int16 tensors, not clipped yet.

    With the larger step S of the two: `n_a (step_a / 2S)` and `n_b (step_b / 2S)` with 15 more
    bits are rounded once, their sum times `2S / (2^15 step)` twice, at last half away from
    zero. (The kernel computes in vectors of 16 values; those that are left over at the end of a
    tensor, and the values of a sum of different shapes, are rounded twice first, too.)

    Args:
        left: integers.
        right: likewise.
        step_a: the step of `left`, `()`.
        step_b: the step of `right`, `()`.
        step: the step of the sum, `()`.
    """
    if not has_64_bits():
        return ops.round(left * (step_a / step) + right * (step_b / step))
    if tuple(left.shape[1:]) != tuple(right.shape[1:]):
        return add_fixed_wide(left, right, step_a, step_b, step)
    twice = 2 * ops.cast(ops.maximum(step_a, step_b), "float64")
    total = 0
    for levels, own in ((left, step_a), (right, step_b)):
        mantissa, exponent = multiplier(own, twice)
        total = total + shift_right(ops.cast(levels, "int64") * mantissa, 16 - exponent)
    return ops.cast(rescale_fixed(total, twice / 2**15, step), step.dtype)


def add_fixed(
    left: Tensor, right: Tensor, step_a: Tensor, step_b: Tensor, step: Tensor, bits: int = 20
) -> Tensor:
    """The levels of a sum in the reference kernels, not clipped yet.

    With the larger step S of the two and `R` of `rescale_fixed`:
    `R(R(n_a << bits, s_a / 2S) + R(n_b << bits, s_b / 2S), 2S / (2^bits s))`.

    Args:
        left: integers.
        right: likewise.
        step_a: the step of `left`, `()`.
        step_b: the step of `right`, `()`.
        step: the step of the sum, `()`.
        bits: 20 of int8 tensors, 15 of int16.
    """
    if not has_64_bits():
        return ops.round(left * (step_a / step) + right * (step_b / step))
    twice = 2 * ops.cast(ops.maximum(step_a, step_b), "float64")
    total = sum(
        rescale_fixed(ops.left_shift(ops.cast(levels, "int64"), bits), own, twice)
        for levels, own in ((left, step_a), (right, step_b))
    )
    return ops.cast(rescale_fixed(total, twice / 2**bits, step), step.dtype)


def add_fixed_wide(
    left: Tensor, right: Tensor, step_a: Tensor, step_b: Tensor, step: Tensor
) -> Tensor:
    """The same of int16 tensors."""
    return add_fixed(left, right, step_a, step_b, step, 15)


def multiply(
    left: Tensor, right: Tensor, step_a: Tensor, step_b: Tensor, step: Tensor
) -> Tensor:
    """The levels of a product, not clipped yet: `round(n_a n_b (step_a step_b / step))`.

    In float32, half to even: XNNPACK on x86.

    Args:
        left: integers, int32.
        right: likewise.
        step_a: the step of `left`, `()`.
        step_b: the step of `right`, `()`.
        step: the step of the product, `()`.
    """
    return ops.round(ops.cast(left * right, step_a.dtype) * (step_a * step_b / step))


def multiply_up(
    left: Tensor, right: Tensor, step_a: Tensor, step_b: Tensor, step: Tensor
) -> Tensor:
    """The same on ARM: the product of the same numbers, exact, is rounded half up."""
    ratio = ops.cast(step_a * step_b / step, wide_dtype())
    levels = ops.floor(ops.cast(left * right, ratio.dtype) * ratio + 0.5)
    return ops.cast(levels, step.dtype)


def multiply_fixed(
    left: Tensor, right: Tensor, step_a: Tensor, step_b: Tensor, step: Tensor
) -> Tensor:
    """The same in the reference kernels, by `rescale_fixed`."""
    steps = (ops.cast(value, wide_dtype()) for value in (step_a, step_b))
    return ops.cast(rescale_fixed(left * right, math.prod(steps), step), step.dtype)


def mean(
    total: Tensor, count: Tensor, step_in: Tensor, step: Tensor, zero_in: float, zero: float
) -> Tensor:
    """Returns the levels of a mean, not clipped yet, in float32.

    With `m = (step_in / step) / count`,
    `n = round((total + count zero_in) m + (zero - count zero_in m)) - zero`.

    Args:
        total: sums of levels, whole numbers as floats.
        count: how many were added, a float.
        step_in: the step of the levels, `()`.
        step: the step of the mean, `()`.
        zero_in: the integer of the levels' container that stands for 0.
        zero: likewise, of the mean's.
    """
    factor = (step_in / step) * (1.0 / count)
    offset = zero - (count * zero_in) * factor
    return ops.round((total + count * zero_in) * factor + offset) - zero


def mean_fused(
    total: Tensor, count: Tensor, step_in: Tensor, step: Tensor, zero_in: float, zero: float
) -> Tensor:
    """The same on ARM, where a product and a sum are rounded at once, twice.

    With the m of `mean`: `n = round((total + count zero_in) m + (zero - count zero_in m)) -
    zero`, its inner and its outer bracket being a fused multiply-add each.
    """
    factor = (step_in / step) * (1.0 / count)
    wide = ops.cast(factor, wide_dtype())  # which holds the products exactly
    shift = ops.cast(count * zero_in, wide.dtype)
    offset = ops.cast(ops.cast(zero - shift * wide, factor.dtype), wide.dtype)
    levels = (ops.cast(total, wide.dtype) + shift) * wide + offset
    return ops.round(ops.cast(levels, factor.dtype)) - zero


def mean_wide(total: Tensor, count: Tensor, step_in: Tensor, step: Tensor) -> Tensor:
    """The levels of a mean of an int16 tensor, or in reference kernels, not clipped yet.

    The count goes into the multiplier: `m' = (m << k) // count`, `e' = e - k`,
    `k = min(floor(log2(count)), 31 + e)`.

    Args:
        total: sums of levels, whole numbers as floats, exact.
        count: how many were added, an integer tensor.
        step_in: the step of the levels, `()`.
        step: the step of the mean, `()`.
    """
    if not has_64_bits():
        return ops.round(total * (step_in / step) / ops.cast(count, step.dtype))
    mantissa, exponent = multiplier(step_in, step)
    count = ops.cast(count, "int64")
    shift = ops.cast(floor_log2(ops.cast(count, "float64"), range(32)), "int64")
    shift = ops.minimum(shift, 31 + exponent)
    mantissa = ops.floor_divide(ops.left_shift(mantissa, shift), count)
    total = ops.cast(total, "int64")
    levels = multiply_twice(total, mantissa, exponent - shift, away=True)
    return ops.cast(levels, step.dtype)


def average(total: Tensor, count: Tensor) -> Tensor:
    """Returns averages of stored integers, rounded half away from zero.

    Args:
        total: their sums, int32.
        count: how many were added, int32.
    """
    size = ops.floor_divide(ops.abs(total) + ops.floor_divide(count, 2), count)
    return ops.sign(total) * size

"""Functions of a stored int8 tensor as tables over its levels, as the runtime makes them."""

from collections.abc import Callable

import numpy as np

from repq_tf.arithmetic import sums
from repq_tf.arithmetic.rescale import (
    floor_log2,
    has_64_bits,
    high_product,
    multiplier,
    multiply_twice,
    shift_right,
    wide_dtype,
)
from repq_tf.keras_api import Array, Tensor, ops

_LOWEST, _HIGHEST = -128, 255  # the levels of all grids that fit the int8 container


def look_up(table: Tensor, levels: Tensor) -> Tensor:
    """Returns the entries of a table of the levels -128 to 255, for some levels (int32)."""
    return ops.take(table, ops.clip(levels, _LOWEST, _HIGHEST) - _LOWEST)


def of_function(function: Callable[[Tensor], Tensor], step_in: Tensor) -> Tensor:
    """Returns `f(x)` for every level of x, found in float64 and rounded to float32.

    Args:
        function: f, of single values.
        step_in: the step of x, `()`.
    """
    return ops.cast(function(ops.cast(_values(step_in), wide_dtype())), step_in.dtype)


def is_certain(levels: Tensor, zero_point: int) -> Tensor:
    """Whether every runtime rounds the levels of a table alike, a truth value, `()`.

    They compute exponentials with functions of the C library, whose last bits differ from one
    to the next; these decide where a level lies close to a tie. A zero point that is added
    before rounding takes more bits.

    Args:
        levels: not rounded, of values that a function of the library makes.
        zero_point: of what is stored.
    """
    margin = ops.abs(levels) * 2.0**-21 + (2.0**-16 if zero_point else 0.0)
    return ops.all(ops.abs(ops.abs(levels) % 1 - 0.5) > margin)


def elu(step_in: Tensor, step: Tensor, zero_point: int) -> Tensor:
    """Returns the levels of `elu(x)` in XNNPACK, for every level of x.

    All in float32, but for the exponential: `round(elu(x) (1 / step) + z) - z`, half to even,
    so that the zero point z of what is stored decides how ties are rounded.

    Args:
        step_in: the step of x, `()`.
        step: that of the output, `()`.
        zero_point: z.
    """
    levels = _in_steps(of_function(ops.elu, step_in), step)
    moved = ops.cast(ops.cast(levels, wide_dtype()) + zero_point, levels.dtype)
    return ops.round(moved) - zero_point


def elu_fixed(step_in: Tensor, step: Tensor, zero_point: int) -> Tensor:
    """The same in TensorFlow Lite Micro: `round(elu(x) (1 / step))`, half away from zero."""
    return _half_away(_in_steps(of_function(ops.elu, step_in), step))


def gelu(step_in: Tensor, step: Tensor) -> Tensor:
    """Returns the levels of `gelu(x) = x / 2 (1 + erf(x / sqrt(2)))`, for every level of x.

    The runtime multiplies `x / 2`, the gate and `1 / step` in float32, and rounds half away
    from zero.

    Args:
        step_in: the step of x, `()`.
        step: that of the output, `()`.
    """
    x = _values(step_in)
    gate = 1 - ops.erf(ops.cast(x * np.float32(-np.sqrt(0.5)), wide_dtype()))
    return _half_away(_in_steps(x / 2 * ops.cast(gate, x.dtype), step))


def tanh(step_in: Tensor) -> Tensor:
    """Returns the levels of `tanh(x)` in steps of 1/128, for every level of x.

    Args:
        step_in: the step of x, `()`.
    """
    return ops.round(tanh_in_steps(step_in))


def tanh_in_steps(step_in: Tensor) -> Tensor:
    """The same before it is rounded."""
    return of_function(ops.tanh, step_in) * np.float32(128)


def _values(step_in: Tensor) -> Tensor:
    """Those of the levels -128 to 255."""
    return ops.arange(_LOWEST, _HIGHEST + 1, dtype=step_in.dtype) * step_in


def _in_steps(values: Tensor, step: Tensor) -> Tensor:
    return values * (1 / ops.cast(step, values.dtype))


def _half_away(levels: Tensor) -> Tensor:
    """Rounds; the sum is found in float64, since that in float32 may be rounded up itself."""
    wide = ops.floor(ops.abs(ops.cast(levels, wide_dtype())) + 0.5)
    return ops.sign(levels) * ops.cast(wide, levels.dtype)


def sigmoid(step_in: Tensor) -> Tensor:
    """Returns the levels of `sigmoid(x)` in steps of 1/256, for every level of x.

    The runtime makes a table of `round(float32(sigmoid(x)) * 256 - 128)`, the sigmoid in
    float64, the rest in float32. As a function of x that is a staircase; here it is kept as
    the 255 floats at which it rises.

    Args:
        step_in: the step of x, `()`.
    """
    rises = ops.convert_to_tensor(_SIGMOID_RISES)
    return ops.cast(ops.searchsorted(rises, _values(step_in), side="right"), step_in.dtype)


def softmax(levels: Tensor, step_in: Tensor) -> Tensor:
    """Returns the levels of a softmax over the last axis, in steps of 1/256.

    The runtime looks exponentials up by the distance of a level from the row's largest one,
    adds them one after the other and rounds half up, in float32:

        e_i = exp(-step_in (max_j n_j - n_i)),
        n_out = min(round(e_i (1 / (sum_j e_j / 256))), 255).

    Args:
        levels: `(..., classes)`, int32.
        step_in: their step, `()`.
    """
    distance = ops.max(levels, axis=-1, keepdims=True) - levels
    x = -step_in * np.arange(_HIGHEST + 1, dtype=np.float32)
    exact = ops.exp(ops.cast(x, wide_dtype()))
    table = ops.cast(exact, step_in.dtype)  # rounded to float32 once
    exponentials = ops.take(table, ops.clip(distance, 0, _HIGHEST))
    # The last of the running sums: `ops.sum` may add in another order.
    total = ops.cumsum(exponentials, axis=-1)[..., -1:]
    rescaled = exponentials * (1 / (total / 256))
    whole = ops.floor(rescaled)
    return ops.minimum(ops.where(rescaled - whole >= 0.5, whole + 1, whole), 255)


def softmax_arm(levels: Tensor, step_in: Tensor) -> Tensor:
    """The same on ARM: a table of 16 bits, a whole sum and one fixed-point factor.

    `T[d] = min(65535, int(exp(-step_in d) 65535 + 1/2))` of distances d, and with
    `1 / (sum T / 256) = m 2^(e - 31)` in float32: `(T m + 2^30) >> 31`, then half up by -e.
    """
    distance = ops.max(levels, axis=-1, keepdims=True) - levels
    x = -step_in * np.arange(_HIGHEST + 1, dtype=np.float32)
    exact = ops.cast(ops.exp(ops.cast(x, wide_dtype())), step_in.dtype)
    table = ops.cast(exact * np.float32(65535), wide_dtype()) + 0.5
    table = ops.minimum(ops.cast(table, "int32"), 65535)
    found = ops.take(table, ops.clip(distance, 0, _HIGHEST))
    total = ops.cast(ops.sum(found, axis=-1, keepdims=True), step_in.dtype)
    factor = 1 / (total * np.float32(1 / 256))
    if not has_64_bits():
        return ops.minimum(ops.round(ops.cast(found, factor.dtype) * factor), 255)
    mantissa, exponent = multiplier(factor, np.float32(1))
    whole = multiply_twice(ops.cast(found, "int64"), mantissa, exponent)
    return ops.cast(ops.minimum(whole, 255), step_in.dtype)


def softmax_fixed(levels: Tensor, step_in: Tensor) -> Tensor:
    """The same in the reference kernels: gemmlowp's fixed point of 32 bits.

    Exponentials have 5 whole bits and 26 behind the point going in, 31 going out; their sum
    has 12 whole bits, and its reciprocal is found by three of Newton's steps.
    """
    if not has_64_bits():
        return softmax(levels, step_in)
    distance = ops.cast(ops.max(levels, axis=-1, keepdims=True) - levels, "int64")
    exact = ops.minimum(ops.cast(step_in, "float64") * 2.0**26, 2.0**31 - 1)
    mantissa, exponent = multiplier(exact, np.float64(1))
    most = ops.right_shift(ops.full_like(exponent, 31 * 2**26), exponent)
    inside = distance <= most
    known = ops.where(inside, distance, 0)
    scaled = high_product(-ops.left_shift(known, exponent), mantissa)
    exponentials = _exponential(scaled)
    parts = ops.where(inside, shift_right(exponentials, 12, away=True), 0)
    total = ops.sum(parts, axis=-1, keepdims=True)
    # Zeros before the highest bit of 32.
    head = 31 - ops.cast(floor_log2(ops.cast(total, "float64"), range(40)), "int64")
    inverse = _reciprocal(ops.left_shift(total, head) - 2**31)
    whole = shift_right(high_product(inverse, exponentials), 35 - head, away=True)
    return ops.cast(ops.clip(ops.where(inside, whole, 0), 0, 255), step_in.dtype)


# Of `exp(-2^k)`, k from -2 to 4, with 31 bits behind the point.
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def _exponential(x: Tensor) -> Tensor:
    """`exp(x)` with 31 bits behind the point of `x <= 0` with 26."""
    quarter = 1 << 24
    rest = ops.bitwise_and(x, quarter - 1) - quarter
    near = ops.left_shift(rest, 5) + (1 << 28)
    square = high_product(near, near)
    cube, fourth = high_product(square, near), high_product(square, square)
    part = shift_right(fourth, 2, away=True) + cube
    series = shift_right(high_product(part, 715827883) + square, 1, away=True)
    y = 1895147668 + high_product(near + series, 1895147668)
    for bit, power in enumerate(_POWERS, 24):
        y = ops.where(ops.bitwise_and(rest - x, 1 << bit) > 0, high_product(y, power), y)
    return ops.where(x == 0, 2**31 - 1, y)


def _reciprocal(x: Tensor) -> Tensor:
    """`1 / (1 + x)`, both with 31 bits behind the point."""
    half = ops.right_shift(x + 2**31, 1)
    y = 1515870810 + high_product(half, -1010580540)
    for _ in range(3):
        step = high_product(y, 2**29 - high_product(half, y))
        y = y + ops.clip(ops.left_shift(step, 2), -(2**31), 2**31 - 1)
    return ops.minimum(ops.left_shift(y, 1), 2**31 - 1)


def shifted(
    offset: int,
    step_in: Tensor,
    step_offset: float,
    step: float,
    add: Callable[..., Tensor] = sums.add,
) -> Tensor:
    """Returns the levels of `x + offset`, added as the runtime does, for every level of x.

    Args:
        offset: the level that is added.
        step_in: the step of x, `()`.
        step_offset: that of the offset, a number.
        step: that of the sum, a number.
        add: how the runtime adds, a function of `sums`.
    """
    levels = ops.arange(_LOWEST, _HIGHEST + 1, dtype="int32")
    steps = (ops.cast(value, step_in.dtype) for value in (step_offset, step))
    return add(levels, ops.full_like(levels, offset), step_in, *steps)


def _sigmoid_levels(x: Array) -> Array:
    """The runtime's levels of `sigmoid(x)`, x float32."""
    sigmoid = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    return np.rint(sigmoid * np.float32(256) - np.float32(128)).astype(int) + 128


def _rises() -> Array:
    """The smallest float32 x with a level of at least k, for k from 1 to 255, by bisection."""
    levels = np.arange(1, 256)
    low, high = np.full(255, -16, np.float32), np.full(255, 16, np.float32)
    while True:
        middle = low + (high - low) / np.float32(2)
        inside = (low < middle) & (middle < high)
        if not inside.any():
            return high
        reached = _sigmoid_levels(middle) >= levels
        high = np.where(inside & reached, middle, high)
        low = np.where(inside & ~reached, middle, low)


_SIGMOID_RISES = _rises()

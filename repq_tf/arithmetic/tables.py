"""Functions of a stored int8 tensor as tables over its levels, as the runtime makes them."""

from collections.abc import Callable

import numpy as np

from repq_tf.arithmetic import sums
from repq_tf.arithmetic.rescale import wide_dtype
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
    x = ops.arange(_LOWEST, _HIGHEST + 1, dtype=step_in.dtype) * step_in
    return ops.cast(function(ops.cast(x, wide_dtype())), step_in.dtype)


def sigmoid(step_in: Tensor) -> Tensor:
    """Returns the levels of `sigmoid(x)` in steps of 1/256, for every level of x.

    The runtime makes a table of `round(float32(sigmoid(x)) * 256 - 128)`, the sigmoid in
    float64, the rest in float32. As a function of x that is a staircase; here it is kept as
    the 255 floats at which it rises.

    Args:
        step_in: the step of x, `()`.
    """
    x = ops.arange(_LOWEST, _HIGHEST + 1, dtype=step_in.dtype) * step_in
    rises = ops.convert_to_tensor(_SIGMOID_RISES)
    return ops.cast(ops.searchsorted(rises, x, side="right"), step_in.dtype)


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


def shifted(offset: int, step_in: Tensor, step_offset: float, step: float) -> Tensor:
    """Returns the levels of `x + offset`, added as the runtime does, for every level of x.

    Args:
        offset: the level that is added.
        step_in: the step of x, `()`.
        step_offset: that of the offset, a number.
        step: that of the sum, a number.
    """
    levels = ops.arange(_LOWEST, _HIGHEST + 1, dtype="int32")
    steps = (ops.cast(value, step_in.dtype) for value in (step_offset, step))
    return sums.add(levels, ops.full_like(levels, offset), step_in, *steps)


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

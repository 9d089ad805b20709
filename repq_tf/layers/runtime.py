"""The integer runtime's arithmetic (LiteRT with XNNPACK), where several layers need it."""

from repq_tf.keras_api import ops
from repq_tf.layers.rescale import floor_log2


def whole(x, step):
    """The integers of a tensor on a grid of the given step, int32."""
    return ops.cast(ops.round(ops.cast(x, step.dtype) / step), "int32")


def add(left, right, step_a, step_b, step):
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

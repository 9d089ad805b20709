"""The integer runtime's rescaling of a convolution's sums to the grid of its output.

The runtime multiplies whole-number sums by `scale / step` with the arithmetic of the kernel
that it has for the operator. Each is written here as it computes, so that a model's inference
gives the file's integers. The fixed-point ones need 64-bit integers, which Keras has on
TensorFlow; elsewhere the float one stands in, at most one level off.
"""

from repq_tf.keras_api import backend, ops

_EXPONENTS = range(-32, 8)


def rescale(sums, scale, step, rounding="float"):
    """Levels of the output, before they are clipped to its grid.

    - "float": `round(sums (scale / step))` in float32, half to even. XNNPACK's kernels.
    - "twice": in fixed point, with a 31-bit multiplier `m 2^e = scale / step`:
      `((sums m + 2^30) >> 31)`, then the shift by -e that is left, each rounding half up.
      Sums wrap around at 32 bits. The runtime's own kernels, of 4-bit weights.

    Args:
        sums: whole numbers as floats, `(..., channels)`.
        scale: the step of their grid, `(channels,)`.
        step: the step of the output, `()`.
        rounding: one of the above.

    Returns:
        Whole numbers as floats, in the dtype of `step`.
    """
    if rounding == "float" or backend() != "tensorflow":
        return ops.round(ops.cast(sums, step.dtype) * (ops.cast(scale, step.dtype) / step))
    mantissa, exponent = _multiplier(ops.cast(scale, "float64") / ops.cast(step, "float64"))
    sums = _wrap(ops.cast(sums, "int64"))
    high = ops.left_shift(sums, ops.maximum(exponent, 0)) * mantissa
    high = ops.right_shift(high + 2**30, 31)
    right = ops.maximum(-exponent, 0)
    half = ops.right_shift(_power(right), 1)
    return ops.cast(ops.right_shift(high + half, right), step.dtype)


def _multiplier(ratio):
    """`m, e` with `m 2^(e - 31) = ratio`, m a whole number of 31 bits, both int64."""
    exponent = ops.cast(floor_log2(ratio, _EXPONENTS) + 1, "int64")
    power = ops.cast(_power(31 - exponent), ratio.dtype)
    mantissa = ops.cast(ops.floor(ratio * power + 0.5), "int64")
    full = mantissa >= 2**31
    mantissa = ops.where(full, ops.right_shift(mantissa, 1), mantissa)
    exponent = ops.where(full, exponent + 1, exponent)
    return mantissa, exponent


def _power(exponent):
    return ops.left_shift(ops.ones_like(exponent), exponent)


def _wrap(sums):
    """What 32 bits hold of 64-bit sums."""
    return ops.bitwise_and(sums + 2**31, 2**32 - 1) - 2**31


def floor_log2(x, exponents):
    """`floor(log2(x))` of positive numbers, exact at powers of two.

    Args:
        x: a tensor.
        exponents: a range of consecutive integers that holds the results.
    """
    steps = [ops.cast(x >= 2.0**power, "int32") for power in exponents[1:]]
    return sum(steps) + exponents[0]

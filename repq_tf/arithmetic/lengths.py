"""Vectors divided by their lengths, as the integer runtime computes it of stored tensors."""

from repq_tf.arithmetic.rescale import (
    floor_log2,
    has_64_bits,
    high_product,
    multiply_twice,
    shift_right,
)
from repq_tf.keras_api import Tensor, ops

_LENGTH_BITS = 7  # of the output, whose steps are 1/128
_LARGEST = 2**31 - 1
_HALF_ROOT = 1518500250  # sqrt(1/2) with 31 bits behind the point


def unit_levels(levels: Tensor) -> Tensor:
    """Returns the levels of `x / |x|` over the last axis, in steps of 1/128.

    All runtimes multiply by a factor in fixed point, `m 2^(e - 31)` for `1 / sqrt(sum n^2)`,
    rounded twice, the second time half away from zero. Without 64 bits floats stand in.

    Args:
        levels: `(..., channels)`, int32; vectors of zeros stay zeros.

    Returns:
        Whole numbers from -128 to 127.
    """
    if not has_64_bits():
        x = ops.cast(levels, "float32")
        square = ops.sum(x * x, axis=-1, keepdims=True)
        return ops.clip(ops.round(128 * x * ops.rsqrt(ops.maximum(square, 1))), -128, 127)
    wide = ops.cast(levels, "int64")
    mantissa, exponent = _inverse_root(ops.sum(wide * wide, axis=-1, keepdims=True))
    found = multiply_twice(wide, mantissa, exponent + _LENGTH_BITS, away=True)
    return ops.clip(found, -128, 127)


def _inverse_root(square: Tensor) -> tuple[Tensor, Tensor]:
    """`m, e` with `m 2^(e - 31)` about `1 / sqrt(square)`, of whole numbers below 2^31.

    The number is shifted by pairs of bits into `2^27 ... 2^29`; there five of Newton's steps,
    `y <- (3/2) y - (x/2) y^3`, begin at 1, with 28 bits behind the point.
    """
    known = ops.maximum(square, 2)
    large = known >= 2**29
    known = ops.where(large, ops.right_shift(known, 2), known)
    bits = ops.cast(floor_log2(ops.cast(known, "float64"), range(32)), "int64")
    pairs = (30 - bits) // 2 - 1
    x = ops.right_shift(ops.left_shift(known, 2 * pairs), 1)
    half, y = shift_right(x, 1), ops.full_like(x, 2**28)
    for _ in range(5):
        cube = ops.left_shift(high_product(high_product(y, y), y), 6)
        y = ops.left_shift(high_product(y, 3 * 2**27) - high_product(half, cube), 3)
    y = high_product(y, _HALF_ROOT)
    shift = 11 + ops.cast(large, "int64") - pairs
    y = ops.left_shift(y, ops.maximum(-shift, 0))
    # Of 0 and of 1: nearly 1.
    tiny = square <= 1
    return ops.where(tiny, _LARGEST, y), ops.where(tiny, 0, -ops.maximum(shift, 0))

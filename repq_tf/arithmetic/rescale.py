"""The integer runtime's rescaling of sums to the grid of an output.

The runtime multiplies whole numbers by a ratio of steps with the arithmetic of the kernel that
it has for the operator: XNNPACK's in float32; its own, of int16 and of int4, in fixed point.
There a positive ratio is `m 2^(e - 31)`, m a whole number of 31 bits. Each is written here as
it computes, so that a model's inference gives the file's integers. Fixed point needs 64-bit
integers, which JAX has `in_64_bits` alone; elsewhere floats stand in, at most one level off.
"""

import contextlib
from collections.abc import Iterator

from repq_tf.keras_api import Tensor, backend, ops

_EXPONENTS = range(-32, 33)
# So many steps are between the ends of the grids that int8 holds.
_LEVELS = 2**8 - 1


@contextlib.contextmanager
def in_64_bits() -> Iterator[None]:
    """A context in which every backend has 64-bit numbers, as export and parity want them."""
    if backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def has_64_bits() -> bool:
    """Whether there are 64-bit numbers: under JAX, whether they are switched on."""
    if backend() != "jax":
        return backend() == "tensorflow"
    import jax

    return bool(jax.dtypes.canonicalize_dtype("float64") == "float64")


def wide_dtype() -> str:
    """The type of sums that float32 does not hold, and of weights to their last bit."""
    return "float64" if has_64_bits() else "float32"


def limited_scale(scale: Tensor, step: Tensor) -> Tensor:
    """The steps of sums, at most as many of an output's as an int8 grid is wide.

    Larger ones give the same levels: any sum but 0 lies beyond an end. But XNNPACK makes no
    operator of 256 or more (LiteRT crashed on one), and fixed point wraps around at 32 bits.

    Args:
        scale: the steps of the sums, `(channels,)`.
        step: that of the output, `()`.
    """
    return ops.minimum(scale, ops.cast(_LEVELS * step, scale.dtype))


def rescale(
    sums: Tensor, scale: Tensor, step: Tensor, rounding: str = "float", bits: int = 8
) -> Tensor:
    """Levels of a convolution's output, before they are clipped to its grid.

    - "float": `round(sums (scale / step))` in float32. XNNPACK.
    - "twice": `(sums m + 2^30) >> 31`, then the shift by -e that is left, both rounding half
      up; sums wrap around at 32 bits. Dense convolutions and matrices of int16, and
      convolutions of int4.
    - "reduced": `(sums m' + 2^(14 - e)) >> (15 - e)`, `m' = (m + 2^15) >> 16` of 15 bits.
      Grouped and depthwise convolutions of int16, which add in 64 bits and keep 32 of them.
    - "once": `(sums m + 2^(30 - e)) >> (31 - e)`. On ARM, what is "twice" elsewhere.
    - "away": as "twice", but that the shift rounds half away from zero. Reference kernels, of
      TensorFlow Lite Micro too.
    - "away_single": the same, of the float32 next to `scale`. Matrices of one column there.

    Args:
        sums: whole numbers as floats, `(..., channels)`.
        scale: the step of their grid, `(channels,)`.
        step: the step of the output, `()`.
        rounding: one of the above.
        bits: of the output; of at most 8, the scale is a `limited_scale`.

    Returns:
        Whole numbers as floats, in the dtype of `step`.
    """
    if bits <= 8:
        scale = limited_scale(scale, step)
    if rounding == "float" or not has_64_bits():
        return ops.round(ops.cast(sums, step.dtype) * (ops.cast(scale, step.dtype) / step))
    scale = ops.cast(scale, "float32") if rounding == "away_single" else scale
    mantissa, exponent = multiplier(scale, step)
    sums = ops.cast(sums, "int64")
    if rounding in ("twice", "away", "away_single"):
        away = rounding != "twice"
        levels = multiply_twice(_wrap(sums), mantissa, exponent, away)
    elif rounding == "once":
        levels = shift_right(_wrap(sums) * mantissa, 31 - exponent)
    else:
        reduced = ops.minimum(ops.right_shift(mantissa + 2**15, 16), 2**15 - 1)
        levels = _wrap(shift_right(sums * reduced, 15 - exponent))
    return ops.cast(levels, step.dtype)


def multiplier(scale: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """`m, e` with `m 2^(e - 31) = scale / step`, both int64."""
    ratio = ops.cast(scale, "float64") / ops.cast(step, "float64")
    exponent = ops.cast(floor_log2(ratio, _EXPONENTS) + 1, "int64")
    power = ops.cast(_power(31 - exponent), ratio.dtype)
    # The cast cuts off what `ops.floor` would, which makes float32 of float64 under JAX.
    mantissa = ops.cast(ratio * power + 0.5, "int64")
    full = mantissa >= 2**31
    mantissa = ops.where(full, ops.right_shift(mantissa, 1), mantissa)
    return mantissa, ops.where(full, exponent + 1, exponent)


def multiply_twice(
    values: Tensor, mantissa: Tensor, exponent: Tensor, away: bool = False
) -> Tensor:
    """`values m 2^(e - 31)`, rounded to 31 bits less first and then to what is left.

    With e > 0, `values 2^e` is what 32 bits hold of it, as in the runtimes.
    """
    high = _wrap(ops.left_shift(values, ops.maximum(exponent, 0))) * mantissa
    return shift_right(ops.right_shift(high + 2**30, 31), ops.maximum(-exponent, 0), away)


def high_product(a: Tensor, b: Tensor | int) -> Tensor:
    """The upper half of a doubled product of 32-bit numbers, rounded half up."""
    return ops.right_shift(a * b + 2**30, 31)


def rescale_fixed(values: Tensor, scale: Tensor, step: Tensor) -> Tensor:
    """`values scale / step` as the reference kernels round it: twice, at last half away.

    Args:
        values: whole numbers.
        scale: their step, `()`, computed with.
        step: that of the result, likewise.

    Returns:
        Whole numbers, int64; without 64 bits, floats.
    """
    if not has_64_bits():
        return ops.round(ops.cast(values, "float32") * (scale / step))
    return multiply_twice(ops.cast(values, "int64"), *multiplier(scale, step), away=True)


def shift_right(values: Tensor, bits: Tensor, away: bool = False) -> Tensor:
    """`values / 2^bits`, rounded half up, or half away from zero."""
    bits = ops.cast(bits, values.dtype)
    half = ops.right_shift(_power(bits), 1)
    if away:
        half = half - ops.cast(ops.logical_and(values < 0, bits > 0), half.dtype)
    return ops.right_shift(values + half, bits)


def _power(exponent: Tensor) -> Tensor:
    return ops.left_shift(ops.ones_like(exponent), exponent)


def _wrap(sums: Tensor) -> Tensor:
    """What 32 bits hold of 64-bit sums."""
    return ops.bitwise_and(sums + 2**31, 2**32 - 1) - 2**31


def floor_log2(x: Tensor, exponents: range) -> Tensor:
    """`floor(log2(x))` of positive numbers, exact at powers of two.

    Args:
        x: a tensor.
        exponents: a range of consecutive integers that holds the results.
    """
    steps = [ops.cast(x >= 2.0**power, "int32") for power in exponents[1:]]
    return sum(steps) + exponents[0]

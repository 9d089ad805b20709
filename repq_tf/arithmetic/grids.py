"""Grids: their levels, how containers hold them, and the rounding to them."""

from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Pair, Tensor, ops

BITS = range(2, 9)
ACTIVATION_BITS = (*BITS, 16)


def levels(
    bits: int, signed: bool, narrow: bool, odd: bool = False, mirrored: bool = False
) -> Pair:
    """The lowest and the highest integer of a grid, `(-Q_N, Q_P)`.

    Unsigned: `0 ... 2^b - 1`. Signed: `-2^(b-1) ... 2^(b-1) - 1`; narrow drops the
    lowest, so that the grid is symmetric, as TFLite wants 8-bit weights; mirrored has the
    one level more above 0: `1 - 2^(b-1) ... 2^(b-1)`. In TFLite's 16 bits
    0 always stands for 0, so that unsigned is the upper half: `0 ... 2^15 - 1`. Odd: as many
    odd numbers, `-(2^b - 1), ..., -1, 1, ..., 2^b - 1`.
    """
    if odd:
        return 1 - 2**bits, 2**bits - 1
    if not signed:
        return 0, 2 ** min(bits, 15) - 1
    top = 2 ** (bits - 1) - 1
    if mirrored:
        return -top, top + 1
    return (-top if narrow else -top - 1), top


def zero_point(bits: int, signed: bool, mirrored: bool = False) -> int:
    """The integer that stands for 0 in the container of a b-bit grid: int8, or int16.

    The top level falls on the container's, so that saturation is the upper clamp at any
    number of bits; for unsigned grids the fused ReLU is the lower clamp.
    """
    return container_top(bits) - levels(bits, signed, narrow=False, mirrored=mirrored)[1]


def operator_zero_point(bits: int, signed: bool, mirrored: bool = False) -> int:
    """That of what an operator itself writes of such a grid.

    Of a signed one of fewer than 8 bits the lowest level falls on the container's, so that
    saturation is the lower clamp; what moves it to its `zero_point` clamps it above.
    """
    if signed and bits < 8:
        return -128 - levels(bits, signed, narrow=False, mirrored=mirrored)[0]
    return zero_point(bits, signed, mirrored)


def container_top(bits: int) -> int:
    """The largest integer of the container of a b-bit grid: 127, or 32767 of 16 bits."""
    return 127 if bits <= 8 else 2**15 - 1


def quantize_levels(
    x: Tensor,
    step: Tensor,
    low: float | Array,
    high: float | Array,
    odd: bool | Array = False,
) -> Tensor:
    """The integers `round-half-to-even(clip(x / step, low, high))`, as floats.

    Args:
        x: a tensor.
        step: positive.
        low: the lowest level, or that of each value.
        high: the highest level, likewise.
        odd: whether the levels are the odd numbers alone, or of which values they are:
            `2 floor(clip(x / step, low, high) / 2) + 1`.
    """
    return _rounded(ops.clip(x / step, low, high), odd)


def _rounded(v: Tensor, odd: bool | Array) -> Tensor:
    if odd is False:
        return ops.round(v)
    between = 2.0 * ops.floor(v / 2.0) + 1.0
    return between if odd is True else ops.where(odd, between, ops.round(v))


def inference_levels(
    x: Tensor,
    step: Tensor,
    low: int | Array,
    high: int | Array,
    odd: bool | Array = False,
) -> Tensor:
    """The levels of `x` in inference, `round(clip(x * (1 / step), low, high))`.

    The runtime multiplies by the reciprocal, which moves values half way between two levels.

    Args:
        x: a float32 tensor or array.
        step: likewise; arithmetic in another type would move other values.
        low: the lowest level, or that of each value.
        high: the highest level, likewise.
        odd: as of `quantize_levels`.
    """
    reciprocal = 1.0 / ops.convert_to_tensor(step)
    return _rounded(ops.clip(ops.convert_to_tensor(x) * reciprocal, low, high), odd)


def input_levels(values: Array, scale: Any, low: int, high: int) -> Array:
    """The integers that a model's input quantizer makes of float32 values, to the last tie."""
    scale = np.asarray(scale, np.float32)
    levels = inference_levels(np.asarray(values, np.float32), scale, low, high)
    return ops.convert_to_numpy(levels).astype(int)


def fits_four_bits(integers: Array) -> bool:
    """Whether all integers of an array lie within -8 to 7."""
    return bool(integers.min() >= -8 and integers.max() <= 7)

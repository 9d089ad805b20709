"""The integer runtime's arithmetic: pure functions of whole numbers, steps and grids."""

from repq_tf.arithmetic.grids import (
    ACTIVATION_BITS,
    BITS,
    container_top,
    fits_four_bits,
    inference_levels,
    input_levels,
    levels,
    operator_zero_point,
    quantize_levels,
    zero_point,
)
from repq_tf.arithmetic.rescale import has_64_bits, in_64_bits, limited_scale, wide_dtype
from repq_tf.arithmetic.weights import integer_weights

__all__ = [
    "ACTIVATION_BITS",
    "BITS",
    "container_top",
    "fits_four_bits",
    "has_64_bits",
    "in_64_bits",
    "inference_levels",
    "input_levels",
    "integer_weights",
    "levels",
    "limited_scale",
    "operator_zero_point",
    "quantize_levels",
    "wide_dtype",
    "zero_point",
]

"""Quantizers: LSQ, and how its step is initialised."""

from repq_tf.arguments import check_bits
from repq_tf.arithmetic import (
    ACTIVATION_BITS,
    BITS,
    container_top,
    levels,
    quantize_levels,
    zero_point,
)
from repq_tf.quantizers.find import find
from repq_tf.quantizers.lsq import LSQ, check_step_gradient, fake_quantize, lsq
from repq_tf.quantizers.step_init import lsq_step, min_error_step

__all__ = [
    "ACTIVATION_BITS",
    "BITS",
    "LSQ",
    "check_bits",
    "check_step_gradient",
    "container_top",
    "fake_quantize",
    "find",
    "levels",
    "lsq",
    "lsq_step",
    "min_error_step",
    "quantize_levels",
    "zero_point",
]

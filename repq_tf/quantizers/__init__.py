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
from repq_tf.quantizers.cluster import ClusterLSQ
from repq_tf.quantizers.find import find
from repq_tf.quantizers.lsq import check_step_gradient, fake_quantize, lsq
from repq_tf.quantizers.lsq_layer import LSQ
from repq_tf.quantizers.of_kernel import (
    WEIGHT_LEVELS,
    check_levels_beside_tap,
    check_weight_levels,
    check_wide_tap,
    kernel_quantizer,
    tap_stands_out,
)
from repq_tf.quantizers.ranges import (
    RANGES,
    VALUE_RULES,
    check_range,
    kl_step,
    max_step,
    percentile_step,
)
from repq_tf.quantizers.step_init import lsq_step, mae_step, min_error_step, search_step
from repq_tf.quantizers.wide_tap import WideTapLSQ, check_identity_taps, has_identity_taps

__all__ = [
    "ACTIVATION_BITS",
    "BITS",
    "ClusterLSQ",
    "LSQ",
    "RANGES",
    "VALUE_RULES",
    "WEIGHT_LEVELS",
    "WideTapLSQ",
    "check_bits",
    "check_identity_taps",
    "check_levels_beside_tap",
    "check_range",
    "check_step_gradient",
    "check_weight_levels",
    "check_wide_tap",
    "container_top",
    "fake_quantize",
    "find",
    "has_identity_taps",
    "kernel_quantizer",
    "kl_step",
    "levels",
    "lsq",
    "lsq_step",
    "mae_step",
    "max_step",
    "min_error_step",
    "percentile_step",
    "quantize_levels",
    "search_step",
    "tap_stands_out",
    "zero_point",
]

"""Quantization: bits and rules, where quantizers go, containers, the table."""

from repq_tf.calibration import clip_rates
from repq_tf.quantization.quantize import check_quantizable, quantize
from repq_tf.quantization.runtimes import with_container, with_runtime
from repq_tf.quantization.table import quantization_table

__all__ = [
    "check_quantizable",
    "clip_rates",
    "quantization_table",
    "quantize",
    "with_container",
    "with_runtime",
]

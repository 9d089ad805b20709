"""Quantization: bits and rules, where quantizers go, calibration, the table."""

from repq_tf.quantization.calibration import clip_rates
from repq_tf.quantization.quantize import check_quantizable, quantize
from repq_tf.quantization.statistics import reestimate_batch_norm
from repq_tf.quantization.table import quantization_table

__all__ = [
    "check_quantizable",
    "clip_rates",
    "quantization_table",
    "quantize",
    "reestimate_batch_norm",
]

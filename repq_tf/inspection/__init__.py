"""Inspection: what a model costs, and what quantization does to it, layer by layer."""

from repq_tf.inspection.allocation import allocate_bits
from repq_tf.inspection.analysis import Analysis, LayerAnalysis, analyze
from repq_tf.inspection.layer_summary import LayerSummary, Summary
from repq_tf.inspection.sensitivity import sensitivity
from repq_tf.inspection.sensitivity_table import LayerCost, Sensitivity, SensitivityRow
from repq_tf.inspection.summary import summary

__all__ = [
    "Analysis",
    "LayerAnalysis",
    "LayerCost",
    "LayerSummary",
    "Sensitivity",
    "SensitivityRow",
    "Summary",
    "allocate_bits",
    "analyze",
    "sensitivity",
    "summary",
]

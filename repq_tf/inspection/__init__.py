"""Inspection: what a model costs, and what quantization does to it, layer by layer."""

from repq_tf.inspection.analysis import Analysis, LayerAnalysis, analyze
from repq_tf.inspection.summary import LayerSummary, Summary, summary

__all__ = ["Analysis", "LayerAnalysis", "LayerSummary", "Summary", "analyze", "summary"]

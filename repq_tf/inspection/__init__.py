"""Inspection: what a model costs, layer by layer."""

from repq_tf.inspection.summary import LayerSummary, Summary, summary

__all__ = ["LayerSummary", "Summary", "summary"]

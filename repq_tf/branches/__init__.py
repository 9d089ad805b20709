"""Branches: the nodes of a block's expression, Keras layers that own their weights."""

from repq_tf.branches.base import Branch, NumpyReading, Reading, WideReading
from repq_tf.branches.batch_norm import BatchNorm
from repq_tf.branches.convolution import Convolution, Identity
from repq_tf.branches.statistics import (
    MODES,
    BatchNormStatistics,
    FeatureReading,
    check_batch_norm,
    check_mode,
    estimated_moments,
    exact_moments,
)
from repq_tf.branches.structure import Chain, Sum

__all__ = [
    "MODES",
    "BatchNorm",
    "BatchNormStatistics",
    "Branch",
    "Chain",
    "Convolution",
    "FeatureReading",
    "Identity",
    "NumpyReading",
    "Reading",
    "Sum",
    "WideReading",
    "check_batch_norm",
    "check_mode",
    "estimated_moments",
    "exact_moments",
]

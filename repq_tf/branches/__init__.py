"""Branches: the nodes of a block's expression, Keras layers that own their weights."""

from repq_tf.branches.base import Branch, check_branch
from repq_tf.branches.batch_norm import OABN, BatchNorm
from repq_tf.branches.convolution import Convolution, Identity, check_groups
from repq_tf.branches.fixed import LAPLACIAN, SOBEL_X, SOBEL_Y, Fixed
from repq_tf.branches.moments import estimated_moments, exact_moments, feature_moments
from repq_tf.branches.readings import FeatureReading, NumpyReading, Reading, WideReading
from repq_tf.branches.statistics import MODES, BatchNormStatistics, check_batch_norm, check_mode
from repq_tf.branches.streams import Streams
from repq_tf.branches.structure import Chain, Sum
from repq_tf.branches.wrappers import Online, Scale, UnitNorm

__all__ = [
    "LAPLACIAN",
    "MODES",
    "OABN",
    "SOBEL_X",
    "SOBEL_Y",
    "BatchNorm",
    "BatchNormStatistics",
    "Branch",
    "Chain",
    "Convolution",
    "FeatureReading",
    "Fixed",
    "Identity",
    "NumpyReading",
    "Online",
    "Reading",
    "Scale",
    "Streams",
    "Sum",
    "UnitNorm",
    "WideReading",
    "check_batch_norm",
    "check_branch",
    "check_groups",
    "check_mode",
    "estimated_moments",
    "exact_moments",
    "feature_moments",
]

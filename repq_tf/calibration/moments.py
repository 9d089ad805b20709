"""Means and variances of features that come batch by batch, and of several calls."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Tensor, ops

# So many values of an array are added up at once.
_PART = 2**15


class Moments:
    """Mean and variance, `(channels,)`, of features that come batch by batch, in float64.

    Images of several sizes have equal weights.
    """

    def __init__(self) -> None:
        self._count = 0
        self.mean: Any = 0.0
        self.variance: Any = 0.0

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Adds the moments of a batch of `count` images."""
        mean, variance = (
            np.asarray(ops.convert_to_numpy(value), np.float64) for value in (mean, variance)
        )
        self._count += count
        share, change = count / self._count, mean - self.mean
        self.mean = self.mean + share * change
        spread = share * (1 - share) * change**2
        self.variance = (1 - share) * self.variance + share * variance + spread

    def add_features(self, y: Tensor, bias: Array | Tensor = 0.0) -> None:
        """Adds the moments of a batch of features `y + bias`.

        They are found by NumPy, to which a few thousand values cost less than their calls do.
        """
        rows = ops.convert_to_numpy(y).reshape(-1, y.shape[-1])
        with np.errstate(invalid="ignore"):  # who asks for the moments judges them
            mean, variance = _array_moments(rows)
        self.add(len(y), mean + ops.convert_to_numpy(bias), variance)


def average_moments(calls: Sequence[Moments]) -> Moments:
    """The moments that the moving ones of a batch norm get by several calls in each step.

    Each call moves them as far, so that they are the means of its calls' means and variances;
    what the means of calls differ by is not part of the variance.
    """
    if len(calls) == 1:
        return calls[0]
    found = Moments()
    found.mean = np.mean([moments.mean for moments in calls], axis=0)
    found.variance = np.mean([moments.variance for moments in calls], axis=0)
    return found


def _array_moments(rows: Array) -> tuple[Array, Array]:
    """Mean and variance of `(n, channels)`, in float64 and in parts that the cache holds."""
    height = max(1, _PART // rows.shape[1])
    # Sums of squares lose nothing around what is almost the mean.
    near = rows[:height].mean(axis=0, dtype=np.float64)
    total, squares = np.zeros_like(near), np.zeros_like(near)
    for k in range(0, len(rows), height):
        part = rows[k : k + height] - near
        ones = np.ones(len(part))
        total += ones @ part
        squares += ones @ np.square(part, out=part)
    offset = total / len(rows)
    return near + offset, np.maximum(squares / len(rows) - offset**2, 0.0)

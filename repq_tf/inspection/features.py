"""Figures of features, which come batch by batch."""

import dataclasses
import math

import numpy as np

from repq_tf.inspection.weights import spread
from repq_tf.keras_api import Array

# The share of values beyond the quantile.
_BEYOND = 1e-4
# A channel whose values differ by this small a part of the tensor's largest is constant.
_EQUAL = 1e-6


@dataclasses.dataclass(frozen=True)
class FeatureFigures:
    """Figures of one tensor in the float network, on the images of the analysis.

    Attributes:
        bits: of the grid that it is rounded to in the quantized network; None for none.
        channels: the number of channels.
        low: the smallest value.
        high: the largest.
        std: the standard deviation.
        quantile: the magnitude that 99.99 % of the values do not pass.
        range_ratio: the largest magnitude of a channel over that of another channel, the
            largest such ratio; dead channels do not count.
        dead: the number of channels that are 0 at all pixels of all images.
        constant: the number of channels that have another value at all of them.
        clipped: the share of values that the quantized network clips; None without a grid.
    """

    bits: int | None
    channels: int
    low: float
    high: float
    std: float
    quantile: float
    range_ratio: float
    dead: int
    constant: int
    clipped: float | None


class FeatureStatistics:
    """What `FeatureFigures` are made of.

    Args:
        size: how many numbers all images to come have together; the quantile is exact where
            images have one size.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        self._low, self._high = np.array(np.inf), np.array(-np.inf)
        self._kept = 0
        self._largest = np.empty(0)
        self._seen, self._outside = 0, 0.0

    def add(self, values: Array, size: int) -> None:
        """Adds a batch.

        Args:
            values: features `(images, ..., channels)`.
            size: how many numbers the images have that they were made of.
        """
        rows = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        self._low = np.minimum(self._low, rows.min(axis=0))
        self._high = np.maximum(self._high, rows.max(axis=0))
        self._count += rows.size
        self._sum += rows.sum()
        self._squares += np.square(rows).sum()
        if not self._kept:
            total = math.ceil(rows.size / size * self._size)
            self._kept = math.floor(_BEYOND * (total - 1)) + 1
        largest = np.append(self._largest, np.abs(rows))
        if len(largest) > self._kept:
            largest = np.partition(largest, len(largest) - self._kept)[-self._kept :]
        self._largest = largest

    def add_clipped(self, share: float, count: int) -> None:
        """Adds the share of `count` values that the quantized network clips."""
        self._outside += share * count
        self._seen += count

    def figures(self, bits: int | None) -> FeatureFigures:
        """The figures of all batches.

        Args:
            bits: of the tensor's grid, if it has one.
        """
        mean = self._sum / self._count
        ranges = np.maximum(np.abs(self._low), np.abs(self._high))
        ratio, _ = spread(ranges)
        dead = (self._low == 0) & (self._high == 0)
        equal = self._high - self._low <= _EQUAL * ranges.max()
        beyond = min(math.floor(_BEYOND * (self._count - 1)), len(self._largest) - 1)
        return FeatureFigures(
            bits=bits,
            channels=len(ranges),
            low=float(self._low.min()) + 0.0,  # of minus zero, zero
            high=float(self._high.max()),
            std=math.sqrt(max(self._squares / self._count - mean**2, 0.0)),
            quantile=float(np.sort(self._largest)[-1 - beyond]),
            range_ratio=ratio,
            dead=int(dead.sum()),
            constant=int((equal & ~dead).sum()),
            clipped=self._outside / self._seen if self._seen else None,
        )

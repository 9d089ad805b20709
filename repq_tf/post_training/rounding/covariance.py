"""The covariances that decide the squared error of a linear layer."""

from typing import Any

import numpy as np

from repq_tf.keras_api import Array

# How far a kernel is held to the one that it was, in parts of the inputs' mean variance, the
# strongest hold first.
_HOLDS = (10.0, 1.0, 0.1, 0.01, 0.001)
# A weaker hold that serves fewer outputs is the last one that is tried.
_SERVED = 0.02
# Three deviations of a normal distribution, in medians of the magnitude; and how many values
# tell a median.
_LIMIT = 3 * 1.4826
_MEDIAN = 2**10
# For inputs that are all zero.
_NOTHING = 1e-30


class Covariance:
    """Those of inputs x and targets y, of pixels that come batch by batch, in float64.

    With them, and a constant c that no W changes, the mean squared error of a layer is

        E |y - W x|^2 = c - 2 <W, G> + <W, H W>.

    Attributes:
        inputs: H, `(groups, inputs, inputs)`; of the sums, before `finish`.
        both: G, `(groups, inputs, outputs)`.
        targets: the mean square of each target, `(groups, 1, outputs)`.
    """

    def __init__(self) -> None:
        self._count = 0
        self.inputs: Any = 0.0
        self.both: Any = 0.0
        self.targets: Any = 0.0
        self._sums: tuple[Any, Any] = 0.0, 0.0

    def add(self, x: Array, y: Array) -> None:
        """Adds pixels: `(groups, pixels, inputs)` and `(groups, pixels, outputs)`."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        turned = x.transpose(0, 2, 1)
        squares = np.square(y).sum(1, keepdims=True)
        means = x.sum(1, keepdims=True), y.sum(1, keepdims=True)
        self._add(x.shape[1], turned @ x, turned @ y, squares, means)

    def _add(self, count: int, inputs: Any, both: Any, targets: Any, sums: Any) -> None:
        self._count += count
        self.inputs = self.inputs + inputs
        self.both, self.targets = self.both + both, self.targets + targets
        self._sums = self._sums[0] + sums[0], self._sums[1] + sums[1]

    def __add__(self, other: "Covariance") -> "Covariance":
        """That of the pixels of both."""
        both = Covariance()
        for one in (self, other):
            both._add(one._count, one.inputs, one.both, one.targets, one._sums)
        return both

    def finish(self, centred: bool) -> "Covariance":
        """Makes means of the sums, in place.

        Args:
            centred: whether means of x and y are taken away, as a bias does that is free.
        """
        x, y = (value / self._count for value in self._sums)
        for values in (self.inputs, self.both, self.targets):
            values /= self._count
        if centred:
            turned = x.transpose(0, 2, 1)
            self.inputs -= turned @ x
            self.both -= turned @ y
            self.targets -= np.square(y)
        return self

    @property
    def scale(self) -> Array:
        """The mean variance of the inputs of each group, `(groups, 1)`."""
        return np.einsum("gii->g", self.inputs)[:, None] / self.inputs.shape[1]

    def error(self, matrix: Array) -> Array:
        """The mean squared error of each output of a matrix, `(groups, 1, outputs)`."""
        found = (matrix * (self.inputs @ matrix - 2 * self.both)).sum(1, keepdims=True)
        return np.maximum(found + self.targets, 0.0)

    def held(self, matrix: Array, hold: float) -> Array:
        """The kernel of least error that is held to a matrix: ridge regression around it.

        Returns:
            `argmin_V E |y - V x|^2 + hold * scale * |V - W|^2`, W being the matrix.
        """
        held = widened(self.inputs, hold * self.scale)
        return matrix + np.linalg.solve(held, self.both - self.inputs @ matrix)


def robust_targets(x: Array, y: Array, matrix: Array) -> Array:
    """Targets y without what is far from a kernel's outputs `x W`.

    Few inputs are clipped, but by much; a squared error would have all weights make up for
    them. Differences `y - x W` are limited to their median and three of their deviations, as
    the median of their magnitudes tells it.

    Args:
        x: `(groups, pixels, inputs)`.
        y: `(groups, pixels, outputs)`.
        matrix: W, `(groups, inputs, outputs)`.
    """
    near = x.astype(np.float64) @ matrix
    away = y - near
    some = away[:, :: -(-away.shape[1] // _MEDIAN)]
    middle = np.median(some, axis=1, keepdims=True)
    limit = _LIMIT * np.median(np.abs(some - middle), axis=1, keepdims=True)
    return near + np.clip(away, middle - limit, middle + limit)


def widened(covariance: Array, variance: Array) -> Array:
    """A covariance `(groups, inputs, inputs)` with more variance, and never none."""
    found = covariance.copy()
    np.einsum("gii->gi", found)[...] += variance + _NOTHING
    return found


def best_kernel(
    halves: tuple[Covariance, Covariance], whole: Covariance, matrix: Array
) -> Array:
    """The kernel in floating point that makes the targets of the inputs.

    Quantized inputs ask for another kernel than those of the float network did. How far it may
    go from that one is for data to say, or it would learn their noise by heart: each output
    takes the hold whose kernel, of one half of the images, has the least error on the other.

    Args:
        halves: the `Covariance` of either half.
        whole: that of all images.
        matrix: the float network's kernel, `(groups, inputs, outputs)`.
    """
    one, other = halves
    best, least = matrix, one.error(matrix) + other.error(matrix)
    for hold in _HOLDS:
        error = one.error(other.held(matrix, hold)) + other.error(one.held(matrix, hold))
        better = error < least
        if np.mean(better) < _SERVED:
            break
        best, least = np.where(better, whole.held(matrix, hold), best), np.minimum(error, least)
    return best

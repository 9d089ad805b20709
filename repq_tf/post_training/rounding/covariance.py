"""The covariances that decide the squared error of a linear layer."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from repq_tf.keras_api import Array

# How far a kernel is held to the one that it was, in parts of the inputs' mean variance, the
# strongest hold first.
_HOLDS = (10.0, 1.0, 0.1, 0.01, 0.001)
# A weaker hold that serves fewer outputs is the last one that is tried.
_SERVED = 0.02
# For inputs that are all zero.
_NOTHING = 1e-30


class Covariance:
    """Those of inputs x and targets y, of pixels that come batch by batch, in float64.

    With them, and a constant c that no W changes, the mean squared error of a layer is

        E |y - W x|^2 = c - 2 <W, G> + <W, H W>.

    Args:
        centred: whether means are taken away, as a bias does that is free.
    """

    def __init__(self, centred: bool) -> None:
        self._centred, self._count = centred, 0
        self._sums: tuple[Any, ...] = (0.0,) * 5

    def add(self, x: Array, y: Array) -> None:
        """Adds pixels: `(groups, pixels, inputs)` and `(groups, pixels, outputs)`."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        turned = x.transpose(0, 2, 1)
        squares = np.square(y).sum(1, keepdims=True)
        means = x.sum(1, keepdims=True), y.sum(1, keepdims=True)
        self._add(x.shape[1], (turned @ x, turned @ y, squares, *means))

    def _add(self, count: int, sums: Iterable[Array]) -> None:
        self._count += count
        self._sums = tuple(a + b for a, b in zip(self._sums, sums, strict=True))

    def __add__(self, other: "Covariance") -> "Covariance":
        """That of the pixels of both."""
        both = Covariance(self._centred)
        for one in (self, other):
            both._add(one._count, one._sums)
        return both

    def _mean(self, index: int) -> Array:
        return self._sums[index] / self._count

    @functools.cached_property
    def inputs(self) -> Array:
        """H, `(groups, inputs, inputs)`."""
        return self._mean(0) - self._shift(3)

    @functools.cached_property
    def both(self) -> Array:
        """G, `(groups, inputs, outputs)`."""
        return self._mean(1) - self._shift(4)

    def _shift(self, index: int) -> Any:
        return self._mean(3).transpose(0, 2, 1) @ self._mean(index) if self._centred else 0.0

    @functools.cached_property
    def targets(self) -> Array:
        """The mean square of each target, `(groups, 1, outputs)`."""
        return self._mean(2) - (np.square(self._mean(4)) if self._centred else 0.0)

    @property
    def scale(self) -> Array:
        """The mean variance of the inputs of each group, `(groups, 1, 1)`."""
        return np.einsum("gii->g", self.inputs)[:, None, None] / self.inputs.shape[1]

    def error(self, matrix: Array) -> Array:
        """The mean squared error of each output of a matrix, `(groups, 1, outputs)`."""
        found = (matrix * (self.inputs @ matrix - 2 * self.both)).sum(1, keepdims=True)
        return np.maximum(found + self.targets, 0.0)

    def held(self, matrix: Array, hold: float) -> Array:
        """The kernel of least error that is held to a matrix: ridge regression around it.

        Returns:
            `argmin_V E |y - V x|^2 + hold * scale * |V - W|^2`, W being the matrix.
        """
        held = self.inputs + (hold * self.scale + _NOTHING) * np.eye(self.inputs.shape[1])
        return matrix + np.linalg.solve(held, self.both - self.inputs @ matrix)


def best_kernel(halves: tuple[Covariance, Covariance], matrix: Array) -> Array:
    """The kernel in floating point that makes the targets of the inputs.

    Quantized inputs ask for another kernel than those of the float network did. How far it may
    go from that one is for data to say, or it would learn their noise by heart: each output
    takes the hold whose kernel, of one half of the pixels, has the least error on the other.

    Args:
        halves: the `Covariance` of either half.
        matrix: the float network's kernel, `(groups, inputs, outputs)`.
    """
    one, other = halves
    best, whole = matrix, one + other
    least = one.error(matrix) + other.error(matrix)
    for hold in _HOLDS:
        error = one.error(other.held(matrix, hold)) + other.error(one.held(matrix, hold))
        better = error < least
        if np.mean(better) < _SERVED:
            break
        best, least = np.where(better, whole.held(matrix, hold), best), np.minimum(error, least)
    return best

"""Initial step sizes: the least error (MinError is the paper's choice) and LSQ's own rule."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from repq_tf.arithmetic import quantize_levels
from repq_tf.keras_api import Array, Shape, Tensor, fold, ops

# Merged kernels have long tails (max/rms up to 80 for an identity on the diagonal),
# so the search goes down to 0.4 % of the maximum, and in equal ratios.
_SMALLEST = 0.004
_COARSE = 24
_FINE = 5
_REFINEMENTS = 2
# So many values of an array are searched at once.
_BLOCK = 2**16

_Error = Callable[[Any], Any]


def _candidates() -> Iterator[tuple[float, bool]]:
    """The search's steps: their ratio to a centre, and whether the best so far becomes it."""
    ratio = _SMALLEST ** (1.0 / (_COARSE - 1))
    yield from ((ratio**k, False) for k in range(1, _COARSE))
    for _ in range(_REFINEMENTS):
        ratio = ratio ** (1.0 / (_FINE + 1))
        yield from ((ratio**k, k == -_FINE) for k in range(-_FINE, _FINE + 1) if k)


_CANDIDATES = tuple(_candidates())


def rows_of(values: Array | Tensor, per_channel: bool) -> tuple[Any, Array | Tensor]:
    """`(channels, n)`, or `(1, n)` for one step, and the functions that suit them.

    Arrays are computed with NumPy, whose many small steps cost less.
    """
    if isinstance(values, np.ndarray):
        xp, values = np, values.astype(np.float32, copy=False)
    else:
        xp, values = ops, ops.cast(values, "float32")
    if per_channel:
        return xp, xp.transpose(xp.reshape(values, (-1, values.shape[-1])))
    return xp, xp.reshape(values, (1, -1))


def guard(xp: Any, step: Tensor, peak: Array | Tensor) -> Array | Tensor:
    """Rows that are all zero take the mean of the others' steps (1 if there is none)."""
    alive = xp.where(peak > 0, xp.ones_like(step), xp.zeros_like(step))
    count = xp.sum(alive)
    mean = xp.where(count > 0, xp.sum(step * alive) / xp.maximum(count, 1.0), 1.0)
    return xp.where(peak > 0, step, mean)


def usual_step(shape: Shape, high: int) -> float:
    """The step of a kernel whose largest weights are `1 / sqrt(n)`, for one of zeros.

    Args:
        shape: the kernel's; n is the number of weights of a filter, or of a vector.
        high: the highest level.
    """
    return 1 / (math.sqrt(math.prod(shape[:-1] or shape)) * high)


def magnitudes(xp: Any, rows: Array | Tensor, low: int, high: int) -> Array | Tensor:
    """How large values are, as a grid sees it that reaches to `high` steps.

    Negative values are nothing to an unsigned grid, and more to one that holds fewer steps
    below 0 than above.
    """
    if low == 0:
        return xp.maximum(rows, 0.0)
    if -low >= high:
        return xp.abs(rows)
    return xp.maximum(rows, rows * (high / low))


def min_error_step(
    values: Array | Tensor, low: int, high: int, per_channel: bool = False, odd: bool = False
) -> Array | Tensor:
    """The step that minimises `sum (quantize(v) - v)^2`.

    A logarithmic search from 0.4 % to 100 % of the step at which nothing is
    clipped, refined twice around the best one.

    Args:
        values: an array or a tensor.
        low: the lowest level.
        high: the highest level.
        per_channel: whether each index of the last axis has a step of its own.
        odd: whether the levels are odd numbers.

    Returns:
        A positive array or tensor, `(channels,)` or `()`.
    """
    return _least_error_step(values, low, high, per_channel, odd, "square")


def mae_step(
    values: Array | Tensor, low: int, high: int, per_channel: bool = False, odd: bool = False
) -> Array | Tensor:
    """The step that minimises `sum |quantize(v) - v|`, found as `min_error_step` is."""
    return _least_error_step(values, low, high, per_channel, odd, "abs")


def _least_error_step(
    values: Array | Tensor, low: int, high: int, per_channel: bool, odd: bool, penalty: str
) -> Array | Tensor:
    xp, rows = rows_of(values, per_channel)
    peak = xp.max(magnitudes(xp, rows, low, high), axis=1)
    largest = xp.maximum(peak, 1e-30) / max(high, 1)
    if xp is np:
        best = np.empty_like(largest)
        height = max(1, _BLOCK // rows.shape[1])
        for k in range(0, len(rows), height):
            part = slice(k, k + height)
            error = _array_error(rows[part], low, high, odd, getattr(np, penalty))
            best[part] = search_step(error, largest[part])
    else:
        error = _tensor_error(rows, low, high, odd, getattr(ops, penalty))
        best = _search(ops, fold, error, largest)
    best = guard(xp, best, peak)
    return best if per_channel else best[0]


def search_step(error: _Error, largest: Array) -> Array:
    """The steps with the least errors, searched as `min_error_step` does.

    Args:
        error: `error(steps)` returns the error of each of some steps, an array like them.
        largest: the largest steps that are tried, those at which nothing is clipped.
    """
    return _search(np, functools.reduce, error, largest)


def _search(xp: Any, reduce: Callable[..., Any], error: _Error, largest: Any) -> Any:
    def try_one(found: tuple[Tensor, ...], candidate: tuple[Any, Any]) -> tuple[Tensor, ...]:
        centre, best, best_error = found
        ratio, refines = candidate
        centre = xp.where(refines, best, centre)
        step = centre * ratio
        value = error(step)
        better = value < best_error
        return centre, xp.where(better, step, best), xp.where(better, value, best_error)

    return reduce(try_one, _CANDIDATES, (largest, largest, error(largest)))[1]


def _tensor_error(rows: Tensor, low: int, high: int, odd: bool, penalty: _Error) -> _Error:
    def error(step: Tensor) -> Tensor:
        step = step[:, None]
        residual = quantize_levels(rows, step, low, high, odd) * step - rows
        return ops.sum(penalty(residual), axis=1)

    return error


def _array_error(
    rows: Array, low: int, high: int, odd: bool, penalty: Callable[..., Array]
) -> _Error:
    """`_tensor_error` in one piece of memory, which the processor's cache holds."""
    rows = np.ascontiguousarray(rows)
    x = np.empty_like(rows)

    def error(step: Array) -> Array:
        step = step[:, None]
        np.divide(rows, step, out=x)
        if odd:
            np.clip(x, low, high, out=x)
            np.add(np.multiply(np.floor(np.divide(x, 2, out=x), out=x), 2, out=x), 1, out=x)
        else:
            np.clip(np.rint(x, out=x), low, high, out=x)
        np.subtract(np.multiply(x, step, out=x), rows, out=x)
        return penalty(x, out=x).sum(axis=1)

    return error


def lsq_step(
    values: Array | Tensor, low: int, high: int, per_channel: bool = False, odd: bool = False
) -> Array | Tensor:
    """LSQ's initial step, `2 mean|v| / sqrt(Q_P)`. Arguments as `min_error_step`.

    Of odd levels it is that between two of them, and half of it is returned.
    """
    xp, rows = rows_of(values, per_channel)
    mean = xp.mean(xp.abs(rows), axis=1)
    between = 2.0 * mean / max(high / 2 if odd else high, 1) ** 0.5
    step = guard(xp, between / 2 if odd else between, mean)
    return step if per_channel else step[0]

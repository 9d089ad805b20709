"""Range rules: where a grid ends, and so its step, decided by the values that it holds.

A rule is `rule(values, low, high, per_channel)`, and returns the step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Tensor, ops
from repq_tf.quantizers.step_init import guard, mae_step, magnitudes, min_error_step, rows_of

# The share of values that `percentile` clips.
_CLIPPED = 1e-4
# KL divergence: bins of the histogram for each level, and candidates for as many bins.
_BINS = 16
_CANDIDATES = 8


def max_step(
    values: Array | Tensor, low: int, high: int, per_channel: bool = False
) -> Array | Tensor:
    """The step at which nothing is clipped, `max |v| / high`. Arguments as `min_error_step`."""
    xp, rows = rows_of(values, per_channel)
    peak = xp.max(magnitudes(xp, rows, low, high), axis=1)
    step = guard(xp, peak / max(high, 1), peak)
    return step if per_channel else step[0]


def percentile_step(
    values: Array | Tensor, low: int, high: int, per_channel: bool = False
) -> Array:
    """The step whose range holds 99.99 % of the values: the quantile of |v|, over `high`.

    One of ten thousand values is clipped, of fewer none. Where the quantile is 0, the largest
    value takes its place.

    Args:
        values: an array or a tensor, not of a graph that is being traced.
        low: the lowest level; 0 makes negative values 0.
        high: the highest level.
        per_channel: whether each index of the last axis has a step of its own.

    Returns:
        A positive array, `(channels,)` or `()`.
    """
    rows = _magnitudes(values, low, high, per_channel)
    peak = rows.max(axis=1)
    last = rows.shape[1] - 1 - int(rows.shape[1] * _CLIPPED)
    quantile = np.partition(rows, last, axis=1)[:, last]
    step = guard(np, np.where(quantile > 0, quantile, peak) / max(high, 1), peak)
    return step if per_channel else step[0]


def kl_step(values: Array | Tensor, low: int, high: int, per_channel: bool = False) -> Array:
    """The step whose range changes the distribution least: TensorRT's entropy calibration.

    Of a histogram of |v| with 16 bins a level, the first i bins are kept for many i. With P,
    their distribution, the tail added to the last bin, and Q, the one that is left of it when
    they are merged to `high + 1` levels without the tail and each level is spread over
    those of its bins that are not empty, the range is that of

        argmin_i KL(P || Q) = sum P log(P / Q),

    the largest of equal ones, of 121 at equal distances, from 1/16 of the largest value to that
    value itself. (Migacz, "8-bit inference with TensorRT", 2017, for 128 levels.) Of unsigned
    grids, zeros are left out: a ReLU makes them of half of all values, and any grid holds them.

    Args:
        values: an array or a tensor, not of a graph that is being traced.
        low: the lowest level; 0 makes negative values 0.
        high: the highest level.
        per_channel: whether each index of the last axis has a step of its own.

    Returns:
        A positive array, `(channels,)` or `()`.
    """
    rows = _magnitudes(values, low, high, per_channel)
    peak = rows.max(axis=1)
    levels = high + 1
    counts = np.stack([_histogram(row, levels * _BINS, low == 0) for row in rows])
    kept = _least_divergence(counts, levels)
    step = guard(np, peak * (kept / counts.shape[1]).astype(np.float32) / high, peak)
    return step if per_channel else step[0]


def _magnitudes(values: Array | Tensor, low: int, high: int, per_channel: bool) -> Array:
    _, rows = rows_of(np.asarray(ops.convert_to_numpy(values)), per_channel)
    return magnitudes(np, rows, low, high)


def _histogram(row: Array, bins: int, without_zeros: bool) -> Array:
    row = row[row > 0] if without_zeros else row
    return np.histogram(row, bins, (0.0, row.max(initial=0.0) or 1.0))[0]


def _least_divergence(counts: Array, levels: int) -> Array:
    """How many bins of each histogram to keep, `(rows,)`."""
    bins = counts.shape[1]
    candidates = np.arange(levels, bins + 1, max(1, levels // _CANDIDATES))
    total = np.maximum(counts.sum(axis=1), 1)
    best, least = np.full(len(counts), bins), np.full(len(counts), np.inf)
    # Of all bins before each one: values, bins that are not empty, and sum n log n.
    before, filled, entropy = (
        np.pad(np.cumsum(a, axis=1), ((0, 0), (1, 0)))
        for a in (counts, counts > 0, counts * np.log(np.maximum(counts, 1)))
    )
    for i in candidates[::-1]:
        edges = np.arange(levels + 1) * i // levels
        inside, tail = before[:, i], total - before[:, i]
        last = counts[:, i - 1]
        values, spread = np.diff(before[:, edges]), np.diff(filled[:, edges])
        log_q = np.log(np.maximum(values, 1) / np.maximum(spread, 1))
        log_q -= np.log(np.maximum(inside, 1))[:, None]
        whole = last + tail
        p_log_p = entropy[:, i] - last * np.log(np.maximum(last, 1))
        p_log_p += whole * np.log(np.maximum(whole, 1))
        p_log_q = (values * log_q).sum(axis=1) + tail * log_q[:, -1]
        divergence = (p_log_p - p_log_q) / total - np.log(total)
        # What is clipped into an empty bin, Q does not hold.
        divergence[(last == 0) & (tail > 0)] = np.inf
        better = divergence < least
        best, least = np.where(better, i, best), np.where(better, divergence, least)
    return best


# The rules that know nothing but the values.
VALUE_RULES: dict[str, Callable[..., Any]] = {
    "min_error": min_error_step,
    "max": max_step,
    "percentile": percentile_step,
    "mae": mae_step,
    "kl": kl_step,
}
RANGES = (*VALUE_RULES, "output_error")


def check_range(name: Any, argument: str) -> str:
    """Returns the name of a range rule, or raises ValueError listing those there are.

    Args:
        name: what the user gave.
        argument: what the error calls it.
    """
    if not isinstance(name, str) or name not in RANGES:
        raise ValueError(f"{argument} must be one of {RANGES}. Received: {name!r}")
    return name

"""Levels in closed form: coordinate descent on the squared error of what a layer makes."""

from typing import Any

import numpy as np

from repq_tf.calibration.reconstruction import KernelFit, Rounded
from repq_tf.keras_api import Array
from repq_tf.post_training.rounding.covariance import (
    Covariance,
    best_kernel,
    robust_targets,
    widened,
)

# Sweeps over all coordinates; between two, steps are fitted to the levels.
_SWEEPS = 6
# What is added to the variance of each input, in parts of their mean.
_DAMPING = 0.05
# So many coordinates change before the others hear of it, all at once.
_BLOCK = 64
# A fitted step is within this factor of the one before.
_LARGEST_CHANGE = 1.5


def descent(fit: KernelFit) -> Rounded:
    """Levels and steps of nearly the least squared error of a layer's outputs.

    With the covariance H of its inputs x and the kernel V of `best_kernel`, an output's mean
    squared error is, but for a constant,

        (s n - V)^T H (s n - V),

    whole numbers n on a grid with the step s. It is a problem of the closest point of a
    lattice, which two starts lead near: the nearest levels, and the nearest plane (GPTQ's
    rounding, one coordinate after the other, the later ones taking over the errors of the
    earlier). From both, sweeps go over the coordinates, the ones with the largest variance
    first, and set each level to the best one while the others stay,

        n_j <- clip(round(n_j - (H (s n - V))_j / (H_jj s))),

    and between sweeps the step to the best one of these levels. The better end of both is
    taken, output by output; and the nearest levels with the step as it was, where on the
    images even that is worse. Targets are the float network's outputs but for what a few
    clipped inputs change by much (`robust_targets`).

    Args:
        fit: the `KernelFit`.
    """
    halves = Covariance(), Covariance()
    for x, y, images in fit.pairs():
        y = robust_targets(x, y, fit.matrix)
        for half, covariance in enumerate(halves):
            rows = images % 2 == half
            covariance.add(x[:, rows], y[:, rows])
    whole = halves[0] + halves[1]
    for covariance in (*halves, whole):
        covariance.finish(fit.corrected)
    kernel, start = best_kernel(halves, whole, fit.matrix), fit.nearest()
    del halves  # a large layer's fill memory
    levels, step = descend(whole.inputs, kernel, start.levels, start.step, fit)
    return fit.better(Rounded(levels, step), start, whole.error)


def descend(
    covariance: Array, kernel: Array, nearest: Array, step: Array, grid: Any
) -> tuple[Array, Array]:
    """Levels and steps, from the nearest ones on.

    Args:
        covariance: of the inputs, `(groups, inputs, inputs)`.
        kernel: what is to be rounded, `(groups, inputs, outputs)`.
        nearest: levels to start from.
        step: `(groups, 1, outputs)`.
        grid: has the lowest and the highest level, `low` and `high`; and `shared`, whether all
            outputs have one step.
    """
    variance = np.einsum("gii->gi", covariance)
    order = np.argsort(-variance, axis=1, kind="stable")[:, :, None]
    turned = order.transpose(0, 2, 1)
    h = np.take_along_axis(np.take_along_axis(covariance, order, 1), turned, 2)
    h = widened(h, _DAMPING * variance.mean(axis=1, keepdims=True))
    v, start = (np.take_along_axis(values, order, 1) for values in (kernel, nearest))
    ends = []
    for levels in (start, _nearest_plane(h, v, step, grid)):
        fitted = step
        for sweep in range(_SWEEPS):
            if sweep:
                fitted = _fitted_step(h, v, levels, fitted, grid.shared)
            levels = _sweep(h, v, levels, fitted, grid)
        away = levels * fitted - v
        error = (away * (h @ away)).sum(1, keepdims=True)
        ends.append((error.sum() if grid.shared else error, levels, fitted))
    (error, levels, fitted), (other, others, others_step) = ends
    levels = np.where(other < error, others, levels)
    fitted = np.where(other < error, others_step, fitted)
    back = np.argsort(order, axis=1)
    return np.take_along_axis(levels, back, 1), fitted


def _sweep(h: Array, v: Array, levels: Array, step: Array, grid: Any) -> Array:
    """The levels after each coordinate was set to the best one, in order."""
    levels = levels.copy()
    slope = h @ (levels * step - v)
    width, unit = np.einsum("gii->gi", h)[:, :, None], step[:, 0]
    for first in range(0, h.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        near, local = h[:, block, block], slope[:, block]
        moved = np.empty_like(local)
        for j in range(local.shape[1]):
            old = levels[:, first + j]
            best = old - local[:, j] / (width[:, first + j] * unit)
            new = np.clip(np.rint(best), grid.low, grid.high)
            new = np.where(np.abs(new - best) < np.abs(old - best), new, old)
            moved[:, j] = (new - old) * unit
            levels[:, first + j] = new
            local += near[:, :, j, None] * moved[:, None, j]
        if moved.any():
            behind = slice(first + _BLOCK, None)
            slope[:, behind] += h[:, behind, block] @ moved
    return levels


def _nearest_plane(h: Array, v: Array, step: Array, grid: Any) -> Array:
    """Levels rounded in order, each one's error made up for by the coordinates to come."""
    upper = np.linalg.cholesky(np.linalg.inv(h)).transpose(0, 2, 1)
    rest, levels, unit = v.copy(), np.empty_like(v), step[:, 0]
    for first in range(0, h.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        near, local = upper[:, block, block], rest[:, block]
        errors = np.empty_like(local)
        for j in range(local.shape[1]):
            new = np.clip(np.rint(local[:, j] / unit), grid.low, grid.high)
            levels[:, first + j] = new
            errors[:, j] = (local[:, j] - new * unit) / near[:, j, j, None]
            local -= near[:, j, :, None] * errors[:, None, j]
        behind = slice(first + _BLOCK, None)
        rest[:, behind] -= upper[:, block, behind].transpose(0, 2, 1) @ errors
    return levels


def _fitted_step(h: Array, v: Array, levels: Array, step: Array, shared: bool) -> Array:
    """The step of least error with some levels, `<n, H V> / <n, H n>`."""
    turned = h @ levels
    axes = None if shared else 1
    over, under = ((turned * x).sum(axis=axes, keepdims=True) for x in (v, levels))
    good = (over > 0) & (under > 0)
    best = np.divide(over, under, out=np.zeros_like(over), where=good)
    best = np.clip(best, step / _LARGEST_CHANGE, step * _LARGEST_CHANGE)
    return np.where(good, best, step)

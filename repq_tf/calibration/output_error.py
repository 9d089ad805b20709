"""Steps by the error of what convolutions make: the range rule `output_error`.

A convolution is linear: an error e of a patch x that it reads makes an error `w e` of its
output, and one of its kernel w, `e x`; a sample of patches tells both. They are measured in
parts of each output's own variance, since what follows may make a small one large. Where
means are corrected, which takes constant errors away, only the errors' variance counts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.keras_api import Array
from repq_tf.quantizers import LSQ, search_step
from repq_tf.quantizers.step_init import guard, magnitudes

# An output with this small a part of the largest one's variance is a constant.
_CONSTANT = 1e-6


def feature_step(readers: Sequence[tuple[Array, Array]], grid: LSQ, corrected: bool) -> Array:
    """The step of a tensor with the least error of what its readers make of it.

    With the error `e = quantize(x) - x` of a patch x, and the variance V over patches, it is
    the sum over the readers w, of which each has outputs o, of

        mean_o V[(w e)_o] / V[(w x)_o].

    Args:
        readers: of each convolution that reads the tensor, the patches and the kernel, from
            `PatchSampler` and `kernel_matrix`.
        grid: the tensor's `LSQ`.
        corrected: whether means are corrected; else it is `E[(w e)_o^2]`.

    Returns:
        A positive number, `()`.
    """
    weighted, peak = [], 1e-30
    for patches, matrix in readers:
        weights = _weights(patches, matrix)
        matrix = matrix * np.sqrt(weights / len(patches[0]))[:, None]
        weighted.append((patches, _compact(matrix.transpose(0, 2, 1)).transpose(0, 2, 1)))
        peak = max(peak, magnitudes(np, patches, grid.low, grid.high).max())

    def error(step: Array) -> Array:
        errors = []
        for patches, matrix in weighted:
            residual = _centred(_quantized(patches, step, grid) - patches, corrected)
            errors.append(np.square(residual @ matrix).sum())
        return np.sum(errors)

    return search_step(error, np.asarray(peak / grid.high, np.float32))


def kernel_step(patches: Array, matrix: Array, grid: LSQ, corrected: bool) -> Array:
    """The steps of a kernel with the least error of what it makes.

    With the covariance C of the patches, output o has the error `e_o C e_o`, where
    `e_o = quantize(w_o) - w_o`. Where all outputs share a step, it is the mean over them, each
    in parts of its variance.

    Args:
        patches: what the convolution reads, from `PatchSampler`.
        matrix: its kernel, from `kernel_matrix`.
        grid: the kernel's `LSQ`.
        corrected: whether means are corrected; else C is `E[x x^T]`.

    Returns:
        Positive numbers, `(outputs,)`, or `()`.
    """
    shared = grid.channels is None
    weights: Any = _weights(patches, matrix) if shared else 1.0
    reads = _compact(_centred(patches, corrected))

    def error(step: Array) -> Array:
        step = step.reshape(len(matrix), 1, -1) if step.ndim else step
        residual = _quantized(matrix, step, grid) - matrix
        errors = np.square(reads @ residual).sum(axis=1) * weights
        return errors.sum() if shared else errors.ravel()

    peak = np.abs(matrix).max(axis=1).ravel()
    peak = peak.max(keepdims=True) if shared else peak
    largest = np.maximum(peak, np.float32(1e-30)) / grid.high
    steps = guard(np, search_step(error, largest[0] if shared else largest), peak)
    return steps[0] if shared else steps


def _weights(patches: Array, matrix: Array) -> Array:
    """What each output counts, `(groups, outputs / groups)`."""
    variance = (patches @ matrix).var(axis=1)
    counts = variance > _CONSTANT * variance.max()
    count = max(int(np.count_nonzero(counts)), 1)
    return np.divide(1 / count, variance, out=np.zeros_like(variance), where=counts)


def _quantized(values: Array, step: Array, grid: LSQ) -> Array:
    return np.clip(np.rint(values / step), grid.low, grid.high) * step


def _centred(patches: Array, corrected: bool) -> Array:
    return patches - patches.mean(axis=1, keepdims=True) if corrected else patches


def _compact(rows: Array) -> Array:
    """At most n rows of length n with the same products, `rows^T rows`."""
    if rows.shape[1] <= rows.shape[2]:
        return rows
    return np.asarray(np.linalg.qr(rows, mode="r"))

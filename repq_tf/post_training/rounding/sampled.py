"""A layer on some of its patches: what its output is, and how to change its kernel for it."""

import numpy as np

from repq_tf.calibration.reconstruction import KernelFit
from repq_tf.keras_api import Array

# How many pixels are kept at most, how many numbers they may have, how many pixels are kept at
# least; one of how many images judges, how many pixels a step looks at, how many run at once.
_PIXELS = 2**15
_NUMBERS = 2**25
_LEAST = 2**10
_JUDGES = 4
_MINIBATCH = 256
_AT_ONCE = 2**12
# Of Adam.
_MEAN, _SQUARE, _EPSILON = 0.9, 0.999, 1e-8


class Sampled:
    """A layer with its activation, on patches of the quantized network's features.

    With the gain, the offset and the activation of the float layer, it is

        activation(gain (x W + b) + offset).

    An output's error is its mean squared distance from the float layer's, as a part of what it
    is with the nearest levels. The b with which it has the float convolution's mean is free
    where means are corrected; else it is 0. Three of four images train a kernel, and the fourth
    judges it.

    Args:
        fit: the `KernelFit`.

    Attributes:
        deviation: of each output, `(groups, 1, outputs / groups)`.
    """

    def __init__(self, fit: KernelFit) -> None:
        self._random = np.random.default_rng(0)
        self._bounds, self._corrected = fit.bounds, fit.corrected
        self._gain, self._offset = (v.astype(np.float32) for v in (fit.gain, fit.offset))
        groups, inputs, outputs = fit.matrix.shape
        kept = min(_PIXELS, _NUMBERS // (groups * (inputs + outputs)))
        share = max(kept, _LEAST) / fit.pixels
        found = [self._some(share, *part) for part in fit.pairs()]
        self._x, y = (np.concatenate([part[k] for part in found], axis=1) for k in (0, 1))
        held = np.concatenate([images for *_, images in found]) % _JUDGES == 0
        self._trained, self._held = np.flatnonzero(~held), np.flatnonzero(held)
        self._x_mean, self._y_mean = (v.mean(1, keepdims=True) for v in (self._x, y))
        self.deviation = y.std(axis=1, keepdims=True)
        self._y = self._finished(y)[0]
        self._weight = np.float32(1)
        error = self.error(fit.nearest().kernel)
        self._weight = 1 / np.maximum(error, 1e-6 * error.max() + 1e-30)

    def _some(self, share: float, x: Array, y: Array, images: Array) -> tuple[Array, ...]:
        """A share of the pixels."""
        if share < 1:
            count = max(1, round(share * len(images)))
            rows = self._random.choice(len(images), count, replace=False)
            x, y, images = x[:, rows], y[:, rows], images[rows]
        return np.ascontiguousarray(x), np.ascontiguousarray(y), images

    def _finished(self, y: Array) -> tuple[Array, Array]:
        """What follows the convolution makes of its outputs; and where it does not clip."""
        y = y * self._gain + self._offset
        low, high = self._bounds
        return np.clip(y, low, high), (y > low) & (y < high)

    def bias_of(self, kernel: Array) -> Array:
        """The b of a kernel, `(groups, 1, outputs / groups)`."""
        if not self._corrected:
            return np.zeros_like(self._y_mean)
        return self._y_mean - self._x_mean @ kernel

    def error(self, kernel: Array) -> Array:
        """The error of each output on images that judge, `(groups, 1, outputs / groups)`."""
        kernel = kernel.astype(np.float32)
        found, bias = 0.0, self.bias_of(kernel)
        for first in range(0, len(self._held), _AT_ONCE):
            rows = self._held[first : first + _AT_ONCE]
            y, _ = self._finished(self._x[:, rows] @ kernel + bias)
            found = found + np.square(y - self._y[:, rows]).sum(1, keepdims=True)
        return np.asarray(found / len(self._held) * self._weight)

    def gradients(self, kernel: Array, bias: Array) -> tuple[Array, Array]:
        """Those of the sum of all errors, on random pixels, by the kernel and by b."""
        rows = self._random.choice(self._trained, _MINIBATCH)
        x = self._x[:, rows]
        y, inside = self._finished(x @ kernel + bias)
        change = (y - self._y[:, rows]) * inside
        change *= self._gain * self._weight * np.float32(2 / _MINIBATCH)
        return x.transpose(0, 2, 1) @ change, change.sum(1, keepdims=True)


class Adam:
    """Adam (arXiv 1412.6980) on one array, which it changes in place."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self._mean, self._square = np.zeros_like(values), np.zeros_like(values)
        self._steps = 0

    def step(self, gradient: Array, rate: Array | float) -> None:
        """Changes the values against a gradient."""
        self._steps += 1
        self._mean += (1 - _MEAN) * (gradient - self._mean)
        self._square += (1 - _SQUARE) * (np.square(gradient) - self._square)
        change = np.sqrt(self._square / (1 - _SQUARE**self._steps))
        change += _EPSILON
        np.divide(self._mean, change, out=change)
        change *= np.asarray(rate / (1 - _MEAN**self._steps), np.float32)
        self.values -= change

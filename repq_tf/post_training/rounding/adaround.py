"""AdaRound (arXiv 2004.10568): each weight is rounded up or down, as training decides."""

import math

import numpy as np

from repq_tf.calibration.reconstruction import KernelFit, Rounded
from repq_tf.keras_api import Array
from repq_tf.post_training.rounding.sampled import Adam, Sampled

# How far v can go, which all iterations together are.
_WAY = 5.0
# What an output's weights that are neither up nor down pay together, in parts of its error with
# the nearest levels; so it means the same for all layers.
_PENALTY = 1.0
# The part of the iterations that is free of it, and its exponents, at first and at last.
_FREE, _FIRST, _LAST = 0.2, 20.0, 2.0
# The ends that a sigmoid is stretched to, before it is clipped to 0 ... 1.
_LOW, _HIGH = -0.1, 1.1


def adaround(fit: KernelFit, iterations: int = 500) -> Rounded:
    """Levels trained on the error behind the activation, with the steps as they are.

    A weight is `s (floor(w / s) + h)`, `h = clip(1.2 sigmoid(v) - 0.1, 0, 1)`, and v starts
    where that is w. Adam minimises the outputs' errors, each in parts of that of the nearest
    levels, and for each the mean over its weights of `1 - |2h - 1|^beta`, beta falling from 20
    to 2, which drives h to 0 or 1.

    Args:
        fit: the `KernelFit`.
        iterations: of Adam, on random pixels.
    """
    layer, step = Sampled(fit), fit.step.astype(np.float32)
    floor = np.clip(np.floor(fit.matrix / fit.step), fit.low, fit.high - 1)
    sigmoid = (np.clip(fit.matrix / fit.step - floor, 0, 1) - _LOW) / (_HIGH - _LOW)
    up = Adam(np.log(sigmoid / (1 - sigmoid)).astype(np.float32))
    floor = floor.astype(np.float32)
    bias = layer.bias_of(fit.matrix.astype(np.float32))
    for k in range(iterations):
        sigmoid, h = _part(up.values)
        gradient, _ = layer.gradients((floor + h) * step, bias)
        gradient *= step
        done = (k / iterations - _FREE) / (1 - _FREE)
        if done > 0:
            beta = _LAST + (_FIRST - _LAST) * (0.5 + 0.5 * math.cos(math.pi * done))
            side = 2 * h - 1
            pull = np.sign(side) * np.abs(side) ** (beta - 1)
            gradient -= pull * (2 * beta * _PENALTY / h.shape[1])
        gradient *= sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
        up.step(gradient, _WAY / iterations)
    levels = floor + (_part(up.values)[1] >= 0.5)
    return fit.better(Rounded(levels, fit.step), fit.nearest(), layer.error)


def _part(v: Array) -> tuple[Array, Array]:
    """A sigmoid, and the part of a step that it stands for."""
    sigmoid = 1 / (1 + np.exp(-v))
    return sigmoid, np.clip(sigmoid * np.float32(_HIGH - _LOW) + np.float32(_LOW), 0, 1)

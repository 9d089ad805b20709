"""AdaQuant (arXiv 2006.10518): a layer's weights, steps and bias trained through rounding."""

import math

import numpy as np

from repq_tf.calibration.reconstruction import KernelFit, Rounded
from repq_tf.post_training.rounding.descent import descent
from repq_tf.post_training.rounding.sampled import Adam, Sampled

# The rates of weights in parts of their step, of steps in parts of themselves, and of biases in
# parts of their output's deviation: absolute ones, as published, suit one scale of weights.
_WEIGHT, _STEP, _BIAS = 0.02, 1e-3, 1e-3


def adaquant(fit: KernelFit, iterations: int = 500) -> Rounded:
    """Levels and steps trained on the error behind the activation.

    The gradient by the levels goes straight through the rounding to the weights, and to the
    steps as in LSQ, with Adam at rates that fall to 0 as a cosine. It starts from what
    `descent` finds, which costs less than the iterations that it saves. The bias that is
    trained along is not kept: calibration sets one behind it.

    Args:
        fit: the `KernelFit`.
        iterations: of Adam, on random pixels.
    """
    start, layer = descent(fit), Sampled(fit)
    first = start.step.astype(np.float32)
    weights = Adam(start.kernel.astype(np.float32))
    growth = Adam(np.zeros((1, 1, 1) if fit.shared else first.shape, np.float32))
    bias = Adam(layer.bias_of(weights.values))
    for k in range(iterations):
        rate = 0.5 + 0.5 * math.cos(math.pi * k / iterations)
        step = first * np.exp(growth.values)
        v = weights.values / step
        levels = np.clip(np.rint(v), fit.low, fit.high)
        inside = (v >= fit.low) & (v <= fit.high)
        by_kernel, by_bias = layer.gradients(levels * step, bias.values)
        levels -= v * inside
        levels *= by_kernel * step
        by_growth = levels.sum(axis=None if fit.shared else 1, keepdims=True)
        weights.step(by_kernel * inside, rate * _WEIGHT * first)
        growth.step(by_growth, rate * _STEP)
        bias.step(by_bias, rate * _BIAS * layer.deviation)
    step = (first * np.exp(growth.values)).astype(np.float64)
    levels = np.clip(np.rint(weights.values / step), fit.low, fit.high)
    return fit.better(Rounded(levels, step), start, layer.error)

"""What features are to be expected of a normal distribution that activations clip."""

import math

import numpy as np

from repq_tf.calibration.float_pass import FloatPass
from repq_tf.calibration.reconstruction import BOUNDS
from repq_tf.graphs import Node
from repq_tf.keras_api import Array, keras
from repq_tf.layers import Quantize, QuantizedAdd, QuantizedMean, ReparamConv

_LEAST = 1e-30  # of a variance


def clipped_normal(
    mean: Array, variance: Array, low: float, high: float
) -> tuple[Array, Array]:
    """The mean and the variance of normal values that are clipped.

    With `a = (low - m) / s`, `b = (high - m) / s`, the normal density f and its integral F,
    DFQ's equations (arXiv 1906.04721, appendix C) are

        E[x]   = low F(a) + high (1 - F(b)) + m (F(b) - F(a)) + s (f(a) - f(b)),
        E[x^2] = low^2 F(a) + high^2 (1 - F(b)) + (m^2 + s^2) (F(b) - F(a))
                 + 2 m s (f(a) - f(b)) + s^2 (a f(a) - b f(b)).

    Here they are those of x - m, which lose nothing where s is small.

    Args:
        mean: m, of each channel.
        variance: s^2, likewise.
        low: the lower bound, or minus infinity.
        high: the upper one, or infinity.
    """
    mean = np.asarray(mean, np.float64)
    s = np.sqrt(np.maximum(np.asarray(variance, np.float64), _LEAST))
    inside, first, second = np.ones_like(s), np.zeros_like(s), np.zeros_like(s)
    for bound, sign in ((low, 1.0), (high, -1.0)):
        if np.isinf(bound):
            continue
        edge = (bound - mean) / s
        beyond, density = _normal(sign * edge), np.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi)
        inside -= beyond
        first += (bound - mean) * beyond + sign * s * density
        second += (bound - mean) ** 2 * beyond + sign * s**2 * edge * density
    second += s**2 * inside
    return mean + first, np.maximum(second - first**2, 0.0)


def _normal(x: Array) -> Array:
    """The integral of the normal density."""
    return np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x.ravel()]).reshape(
        x.shape
    )


class ExpectedFeatures:
    """The float network's mean and variance of each channel of its tensors, without looking.

    What a convolution makes is taken to be normal: with beta and gamma squared of a trained
    batch norm at its root, or else with the moments on the calibration images. Activations clip
    it, and sums add up what is taken to be independent.

    Args:
        real: the `FloatPass` over the images.
    """

    def __init__(self, real: FloatPass) -> None:
        self._real = real
        self._found: dict[str, tuple[Array, Array]] = {}

    def add(self, node: Node) -> None:
        """Finds those of a node of the quantized model, if those before tell them."""
        layer = node.layer
        sources = [tensor.node for tensor in node.inputs if not tensor.index]
        read = [self._found[name] for name in sources if name in self._found]
        if isinstance(layer, ReparamConv):
            found = self._real.before_activation(layer.name)
        elif len(read) < len(sources):
            return
        elif isinstance(layer, QuantizedAdd):
            (mean, variance), (other, others) = read
            found = mean + other, variance + others
        else:
            if type(layer) in (Quantize, QuantizedMean):
                (self._found[node.name],) = read
            return
        bounds = BOUNDS.get(keras.activations.serialize(layer.activation))
        if bounds is not None:
            self._found[node.name] = clipped_normal(*found, *bounds)

    def mean_before(self, node: Node, calls: int = 1) -> Array | None:
        """The mean of each channel of what a block reads, or None where nothing tells it.

        Args:
            node: of the block.
            calls: in how many places the model calls it. What it reads in several is not alike.
        """
        found = self._found.get(node.inputs[0].node)
        if found is None or calls > 1 or node.layer.upsampling > 1:  # zeros between the pixels
            return None
        return found[0]

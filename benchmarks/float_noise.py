"""What rounding of 8 bits does to a float network, without any quantizer of the library.

Where a quantized network is farther from its float one than this is, something is at fault;
where both are far, the network makes much of little.
"""

import numpy as np

from repq_tf.graphs import read_graph
from repq_tf.keras_api import keras

_layers = keras.layers
_WEIGHTED = (_layers.Conv2D, _layers.DepthwiseConv2D, _layers.SeparableConv2D, _layers.Dense)
_ACTIVATIONS = (_layers.Activation, _layers.ReLU)
# Layers whose outputs are on the grid of their inputs.
_MOVE = (
    *(_layers.Concatenate, _layers.Dropout, _layers.MaxPooling2D, _layers.Normalization),
    *(_layers.Rescaling, _layers.Reshape, _layers.ZeroPadding2D),
)


class Noise(_layers.Layer):
    """Adds what the rounding to 256 levels over the range of the values would, at random.

    Args:
        rng: a generator of random numbers.
    """

    def __init__(self, rng):
        super().__init__()
        self._rng = rng

    def call(self, x):
        """Adds uniform noise of half a step."""
        half = float(keras.ops.max(x) - keras.ops.min(x)) / 510
        return x + self._rng.uniform(-half, half, x.shape).astype("float32")

    def compute_output_shape(self, input_shape):
        """The input's."""
        return input_shape


def noisy(model, seed=0):
    """A float model with its own weights, rounded to 8 bits, and noise at stored features.

    It runs eagerly; the given model's kernels are rounded, too.
    """
    rng, graph = np.random.default_rng(seed), read_graph(model)
    for layer in model.layers:
        for weight in layer.weights:
            if "kernel" in weight.path.rsplit("/", 1)[-1]:
                weight.assign(_rounded(layer, np.float64(keras.ops.convert_to_numpy(weight))))

    def call(layer, *args, **kwargs):
        y = layer(*args, **kwargs)
        readers = [node.layer for node in graph.consumers(layer.name)]
        return Noise(rng)(y) if readers and _is_stored(layer, readers) else y

    return keras.models.clone_model(model, clone_function=lambda x: x, call_function=call)


def _rounded(layer, kernel):
    """A kernel on 255 levels per filter."""
    depthwise = isinstance(layer, _layers.DepthwiseConv2D)
    axes = (0, 1) if depthwise else tuple(range(kernel.ndim - 1))
    steps = np.abs(kernel).max(axes, keepdims=True) / 127
    steps[steps == 0] = 1
    return np.round(kernel / steps) * steps


def _is_stored(layer, readers):
    """Whether a layer's output is rounded: what follows is not computed before that."""
    if isinstance(layer, (*_MOVE, _layers.InputLayer)):
        return False
    fused = ()
    if isinstance(layer, _WEIGHTED):
        fused = (_layers.BatchNormalization, *_ACTIVATIONS)
    elif isinstance(layer, (_layers.Add, _layers.BatchNormalization)):
        fused = _ACTIVATIONS
    return not all(isinstance(reader, fused) for reader in readers)

"""How single operators are written for the converter, where `values` would not do."""

import dataclasses

import numpy as np

from repq_tf.deployment.merge import grid_layer
from repq_tf.keras_api import keras
from repq_tf.layers import (
    Quantize,
    QuantizedAveragePooling2D,
    QuantizedLeakyReLU,
    QuantizedPReLU,
)

ON_INPUT_GRID = QuantizedAveragePooling2D | QuantizedLeakyReLU


def emit(trace, node, args):
    """What a quantized operator computes, before its output is rounded."""
    emission = EMISSIONS.get(type(node.layer))
    if emission is not None:
        return emission(trace, node, args[0])
    steps = isinstance(node.layer, Quantize)
    return node.layer.values(*(args if steps else args[:1]))


def skeleton(kernel):
    """A per-tensor quantized kernel, whose numbers `set_grids` replaces.

    The converter refuses per-channel grids of depthwise and dense kernels.
    """
    import tensorflow as tf

    peak = float(np.abs(kernel).max()) or 1.0
    return tf.quantization.fake_quant_with_min_max_vars(
        tf.constant(kernel), -peak, peak, 8, narrow_range=True
    )


def stays_inside(layer):
    """Whether what a layer computes cannot leave the grid of its input at the lower end."""
    if isinstance(layer, QuantizedLeakyReLU):
        return layer.negative_slope <= 1
    return isinstance(
        layer, QuantizedAveragePooling2D | keras.layers.ReLU | keras.layers.Activation
    )


def _prelu(trace, node, x):
    """`max(x, 0) + alpha min(x, 0)` in the runtime's fast operators; see the layer.

    The two parts are an equal-scale QUANTIZE each, whose zero point lies at an end of the
    container, so that it saturates at 0.
    """
    import tensorflow as tf

    layer, source = node.layer, grid_layer(trace.graph, node.inputs[0])

    def part(name, bound, zero):
        # A ReLU would be fused with a second copy of the layer before, a MINIMUM is not;
        # it becomes the QUANTIZE, and the zero point clamps.
        bound = trace.fake_quantize(tf.constant(float(bound)), source)
        y = trace.fake_quantize(tf.minimum(x, bound), source)
        grid = trace.grid(source, f"{node.name}/{name}")
        return trace.tap(y, dataclasses.replace(grid, zero_point=zero))

    highest = source.activation_quantizer.high * trace.steps[source.name]
    positive, negative = part("positive", highest, -128), part("negative", 0, 127)
    sign, scale = trace.slopes[node.name]
    channels, flat = x.shape[-1], x.shape.rank == 2
    if flat:
        negative = tf.reshape(negative, (-1, 1, 1, channels))
    kernel = skeleton((sign * scale).reshape(1, 1, -1, 1))
    y = tf.nn.depthwise_conv2d(negative, kernel, (1, 1, 1, 1), "VALID")
    weights = (sign.reshape(1, 1, 1, -1), scale, np.zeros_like(scale))
    grid = trace.grid(layer, f"{node.name}/scaled", *weights)
    y = trace.tap(trace.fake_quantize(y, layer), grid)
    return positive + (tf.reshape(y, (-1, channels)) if flat else y)


def _leaky_relu(trace, node, x):
    import tensorflow as tf

    return tf.nn.leaky_relu(x, node.layer.numerator / 256)


EMISSIONS = {QuantizedLeakyReLU: _leaky_relu, QuantizedPReLU: _prelu}

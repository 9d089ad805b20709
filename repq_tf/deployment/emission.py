"""How single operators are written for the converter, where `values` would not do."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.graphs import Node
from repq_tf.keras_api import Array, Tensor
from repq_tf.layers import (
    Quantize,
    QuantizedHardSigmoid,
    QuantizedLeakyReLU,
    QuantizedPReLU,
    QuantizedUpSampling2D,
)
from repq_tf.quantization.grids import grid_layer, known_name, quantized_node


def emit(trace: Any, node: Node, args: tuple[Any, ...]) -> Tensor:
    """What a quantized operator computes, before its output is rounded."""
    if type(node.layer) is Quantize and quantized_node(trace.graph, node) is node:
        return _rescale(trace, node, args[0])
    emission = EMISSIONS.get(type(node.layer))
    if emission is not None:
        return emission(trace, node, args[0])
    steps = isinstance(node.layer, Quantize)
    return node.layer.values(*(args if steps else args[:1]))


def skeleton(trace: Any, shape: Sequence[int], per_channel: bool = False) -> Tensor:
    """A quantized kernel, whose numbers `set_grids` replaces.

    No two of a file are equal: the converter would share them, and with them the convolutions
    of one tensor. It refuses per-channel grids of depthwise and dense kernels.
    """
    import tensorflow as tf

    peak = 1 + trace.skeletons / 1024
    kernel = np.random.default_rng(trace.skeletons).integers(-127, 128, shape) * (peak / 127)
    trace.skeletons += 1
    kernel = tf.constant(kernel, "float32")
    if per_channel:
        peaks = np.full(shape[-1], peak, np.float32)
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -peaks, peaks, 8, narrow_range=True
        )
    return tf.quantization.fake_quant_with_min_max_vars(
        kernel, -peak, peak, 8, narrow_range=True
    )


def _prelu(trace: Any, node: Node, x: Tensor) -> Tensor:
    """`max(x, 0) + alpha min(x, 0)` in the runtime's fast operators; see the layer.

    The two parts are an equal-scale QUANTIZE each, whose zero point lies at an end of the
    container, so that it saturates at 0. int16 has no other zero point than 0; there they are
    a RELU and a MINIMUM.
    """
    import tensorflow as tf

    layer, source = node.layer, grid_layer(trace.graph, node.inputs[0])

    def part(name: str, bound: float, zero: int) -> Tensor:
        # A ReLU would be fused with a second copy of the layer before, a MINIMUM is not;
        # it becomes the QUANTIZE, and the zero point clamps, or the RELU.
        bound = trace.fake_quantize(tf.constant(float(bound)), source)
        y = trace.fake_quantize(tf.minimum(x, bound), source)
        grid = trace.grid(source, f"{node.name}/{name}")
        return trace.tap(y, dataclasses.replace(grid, zero_point=zero))

    highest = source.activation_quantizer.high * trace.steps[source.name]
    low, high = (-128, 127) if layer.bits <= 8 else (0, 0)
    positive, negative = part("positive", highest, low), part("negative", 0, high)
    y, weights = scale_channels(trace, negative, *trace.slopes[node.name])
    grid = trace.grid(layer, f"{node.name}/scaled", *weights)
    return positive + trace.tap(trace.fake_quantize(y, layer), grid)


def scale_channels(
    trace: Any, x: Tensor, integers: Array, scale: Array
) -> tuple[Tensor, tuple[Array, Array, Array]]:
    """A 1x1 depthwise convolution, and its weights as a `Grid` takes them.

    Args:
        trace: the `Trace`.
        x: features `(batch, ..., channels)`.
        integers: the weights, `(channels,)`.
        scale: their scale, `(channels,)`.
    """
    import tensorflow as tf

    channels, inner, flat = x.shape[-1], x.shape[1:], x.shape.rank != 4
    if flat:
        x = tf.reshape(x, (-1, 1, 1, channels))
    kernel = skeleton(trace, (1, 1, channels, 1))
    y = tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "VALID")
    y = tf.reshape(y, (-1, *inner)) if flat else y
    return y, (integers.reshape(1, 1, 1, -1), scale, np.zeros_like(scale))


def _rescale(trace: Any, node: Node, x: Tensor) -> Tensor:
    """An operator's output on the grid that several tensors share.

    The runtime's QUANTIZE multiplies with eight bits of precision; a convolution with the
    weight 1 rounds as the model does.
    """
    ones = np.ones(x.shape[-1], np.float32)
    y, weights = scale_channels(trace, x, ones, ones)
    trace.weights[node.name] = weights
    return y


def _leaky_relu(trace: Any, node: Node, x: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.nn.leaky_relu(x, node.layer.numerator / 256)


def depth_to_space_wide(x: Tensor, size: int) -> Tensor:
    """`depth_to_space` for int16, of which the runtime has no kernel: by way of the batch."""
    import tensorflow as tf

    planes = tf.concat(tf.split(x, size * size, axis=-1), axis=0)
    return tf.batch_to_space(planes, (size, size), tf.zeros((2, 2), tf.int32))


def _up_sampling(trace: Any, node: Node, x: Tensor) -> Tensor:
    import tensorflow as tf

    layer, (height, width) = node.layer, x.shape[1:3]
    rows, columns = layer.size
    if None not in (height, width):
        sizes = (height * rows, width * columns)
        if layer.interpolation == "bilinear":
            return tf.raw_ops.ResizeBilinear(images=x, size=sizes, half_pixel_centers=True)
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=sizes)
    if layer.interpolation == "nearest" and rows == columns:
        # A resize to a computed size would be left to the runtime's slow kernels.
        return tf.nn.depth_to_space(tf.concat([x] * rows**2, axis=-1), rows)
    raise ValueError(
        f"layer {known_name(trace.graph, node)!r}: of images of any size a file can hold only "
        f"interpolation='nearest' by one factor; give input_shape. Received: "
        f"interpolation={layer.interpolation!r}, size={layer.size}"
    )


def _hard_sigmoid(trace: Any, node: Node, x: Tensor) -> Tensor:
    """A sum that saturates, and a product that renames its levels; see the layer."""
    layer = node.layer
    shifted = x + _constant(layer.OFFSET, layer.OFFSET_STEP)
    step = np.float32(layer.WIDTH / 255)
    shifted = _fake_quantize(shifted, step, -128)
    grid = dataclasses.replace(trace.grid(layer, f"{node.name}/shifted"), scale=step)
    return trace.tap(shifted, grid) * _constant(127, 1 / (127 * layer.WIDTH))


def _constant(level: float, step: float) -> Tensor:
    """A scalar on a symmetric grid."""
    import tensorflow as tf

    return _fake_quantize(tf.constant(level * step, tf.float32), step, 0)


def _fake_quantize(x: Tensor, step: float | np.floating, zero: int) -> Tensor:
    import tensorflow as tf

    return tf.quantization.fake_quant_with_min_max_vars(
        x, float((-128 - zero) * step), float((127 - zero) * step), num_bits=8
    )


EMISSIONS = {
    QuantizedHardSigmoid: _hard_sigmoid,
    QuantizedLeakyReLU: _leaky_relu,
    QuantizedPReLU: _prelu,
    QuantizedUpSampling2D: _up_sampling,
}

"""What each layer of a quantized model becomes in a file: one entry each."""

from collections.abc import Sequence

import numpy as np

from repq_tf.arithmetic import container_top
from repq_tf.deployment.convolutions import (
    convolution,
    dense,
    fused_activation,
    scale_channels,
)
from repq_tf.deployment.lowering import IntegerLowering, Lower, Lowering, Make
from repq_tf.deployment.moves import (
    PIXELS,
    concatenation,
    largest,
    making,
    nothing,
    padding,
    pixel_shuffle,
    pooling,
    reshaping,
    simple,
    up_sampling,
)
from repq_tf.graphs import Node
from repq_tf.keras_api import keras, ops
from repq_tf.layers import (
    DenseBlock,
    DepthToSpace,
    Quantize,
    QuantizedAdd,
    QuantizedAveragePooling2D,
    QuantizedHardSigmoid,
    QuantizedLeakyReLU,
    QuantizedMean,
    QuantizedMultiply,
    QuantizedPReLU,
    QuantizedSigmoid,
    QuantizedSoftmax,
    QuantizedUpSampling2D,
    ReparamConv,
)
from repq_tf.quantization.operators import activation_name
from repq_tf.tflite.program import Grid, Tensor, whole

_layers = keras.layers


def _pair(kind: str) -> Lower:
    """An operator on two tensors, whose shapes are broadcast."""

    def lower(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
        shape = node.layer.values_shape(*(tensor.shape for tensor in tensors))
        options = {"fusedActivationFunction": fused_activation(node.layer)}
        return making(lowering, kind, tensors, shape, **options)

    return lower


def _mean(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    axes = lowering.program.constant("axes", whole(PIXELS))
    (x,) = tensors
    shape = node.layer.values_shape(x.shape)
    return making(lowering, "MEAN", (x, axes), shape, keepDims=node.layer.keepdims)


def _rescale(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """An operator's output on the grid that several tensors share.

    The runtime's QUANTIZE multiplies with eight bits of precision; a convolution with the
    weight 1 rounds as the model does.
    """
    x, ones = tensors[0], np.ones(tensors[0].shape[-1], np.float32)

    def make(grid: Grid, name: str) -> Tensor:
        return scale_channels(lowering, x, lowering.tensor(name, x.shape, grid), ones, ones)

    return make


def _prelu(lowering: IntegerLowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """`max(x, 0) + alpha min(x, 0)` in the runtime's fast operators; see the layer.

    The two parts are an equal-scale QUANTIZE each, whose zero point lies at an end of the
    container, so that it saturates at 0. int16 has no other zero point than 0; there they are
    a RELU and a MINIMUM.
    """
    layer, (x,), program = node.layer, tensors, lowering.program
    sign, size = map(ops.convert_to_numpy, layer.integer_slope())
    lowering.check_finite(node.name, sign, size)
    assert x.grid is not None  # it is stored

    def part(which: str, zero: int) -> Tensor:
        narrow = x.type == "int16"
        grid = Grid(x.grid.scale, 0 if narrow else zero)  # type: ignore[union-attr]
        y = lowering.inner(f"{node.name}/{which}", x.shape, grid)
        if not narrow:
            return program.add("QUANTIZE", (x,), y)
        if which == "positive":
            return program.add("RELU", (x,), y)
        bound = program.constant(f"{node.name}/zero", np.zeros((), np.int16), x.grid)
        return program.add("MINIMUM", (x, bound), y)

    top = container_top(8)
    positive, negative = part("positive", -top - 1), part("negative", top)
    y = lowering.inner(f"{node.name}/scaled", x.shape, lowering.grid(layer))
    scaled = scale_channels(lowering, negative, y, sign, size)
    options = {"fusedActivationFunction": "NONE"}
    return making(lowering, "ADD", (positive, scaled), x.shape, **options)


def _hard_sigmoid(lowering: IntegerLowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A sum that saturates, and a product that renames its levels; see the layer."""
    layer, (x,), program = node.layer, tensors, lowering.program

    def constant(what: str, level: int, step: float) -> Tensor:
        value, grid = np.asarray(level, np.int8), Grid(np.float32(step))
        return program.constant(f"{node.name}/{what}", value, grid)

    offset = constant("offset", layer.OFFSET, layer.OFFSET_STEP)
    grid = Grid(np.float32(layer.WIDTH / 255), -container_top(8) - 1)
    shifted = lowering.inner(f"{node.name}/shifted", x.shape, grid)
    options = {"fusedActivationFunction": "NONE"}
    program.add("ADD", (x, offset), shifted, **options)
    factor = constant("factor", 127, 1 / (127 * layer.WIDTH))
    return making(lowering, "MUL", (shifted, factor), x.shape, **options)


# On the grid of what they read.


def _leaky_relu(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    alpha = node.layer.numerator / 256
    return making(lowering, "LEAKY_RELU", tensors, tensors[0].shape, alpha=alpha)


def _activation(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make | Tensor:
    name = activation_name(node.layer)
    if name == "linear":
        return tensors[0]
    return making(lowering, name.upper(), tensors, tensors[0].shape)


LOWERINGS: dict[type, Lower] = {
    DenseBlock: dense,
    DepthToSpace: pixel_shuffle,
    Quantize: _rescale,
    QuantizedAdd: _pair("ADD"),
    QuantizedAveragePooling2D: pooling("AVERAGE_POOL_2D"),
    QuantizedHardSigmoid: _hard_sigmoid,
    QuantizedLeakyReLU: _leaky_relu,
    QuantizedMean: _mean,
    QuantizedMultiply: _pair("MUL"),
    QuantizedPReLU: _prelu,
    QuantizedSigmoid: simple("LOGISTIC"),
    QuantizedSoftmax: simple("SOFTMAX", beta=1.0),
    QuantizedUpSampling2D: up_sampling,
    ReparamConv: convolution,
    _layers.Activation: _activation,
    _layers.Concatenate: concatenation,
    _layers.Dropout: nothing,
    _layers.Flatten: reshaping,
    _layers.GlobalAveragePooling2D: reshaping,  # of one pixel; others are quantized layers
    _layers.GlobalMaxPooling2D: largest,
    _layers.MaxPooling2D: pooling("MAX_POOL_2D"),
    _layers.ReLU: _activation,
    _layers.Reshape: reshaping,
    _layers.ZeroPadding2D: padding,
}

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
    cropping,
    largest,
    making,
    nothing,
    padding,
    permuting,
    pixel_shuffle,
    pooling,
    reshaping,
    simple,
    slicing,
    up_sampling,
)
from repq_tf.deployment.transposed import transposed
from repq_tf.graphs import Node
from repq_tf.keras_api import Shape, keras, ops
from repq_tf.layers import (
    ConvTransposeBlock,
    DenseBlock,
    DepthToSpace,
    Quantize,
    QuantizedAdd,
    QuantizedAveragePooling2D,
    QuantizedHardSigmoid,
    QuantizedLeakyReLU,
    QuantizedLookup,
    QuantizedMean,
    QuantizedMultiply,
    QuantizedPReLU,
    QuantizedSigmoid,
    QuantizedSoftmax,
    QuantizedSubtract,
    QuantizedTanh,
    QuantizedUnitNormalization,
    QuantizedUpSampling2D,
    ReparamConv,
    Slice,
)
from repq_tf.layers.stock import TRAINING_ONLY
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


def _lookup(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """An operator of the runtime that makes the table, or the table itself; see the layer."""
    layer, (x,), program = node.layer, tensors, lowering.program
    assert x.grid is not None  # it is stored
    step = ops.convert_to_tensor(np.float32(x.grid.scale))
    operator = layer.operator_of(step)
    if operator is not None:
        options = {"approximate": False} if operator == "GELU" else {}
        return making(lowering, operator, tensors, x.shape, **options)
    # Of integers below the grid's lowest level there are none; any entry does.
    levels = np.clip(np.arange(-128, 128) - x.grid.zero_point, -128, 255)
    table = ops.convert_to_numpy(layer.table(step))[levels + 128]
    lowering.check_finite(node.name, table)

    def make(grid: Grid, name: str) -> Tensor:
        numbers = (Tensor(program.name(f"{node.name}/{n}"), "int32", x.shape) for n in "ab")
        number, index = numbers
        program.add("CAST", (x,), number, inDataType="int8", outDataType="int32")
        half = program.constant("half", whole(128))
        program.add("ADD", (number, half), index, fusedActivationFunction="NONE")
        entries = program.constant(
            f"{node.name}/table", (table + grid.zero_point).astype(np.int8), grid
        )
        return program.add("GATHER", (entries, index), lowering.tensor(name, x.shape, grid))

    return make


# On the grid of what they read.


def _leaky_relu(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    alpha = node.layer.numerator / 256
    return making(lowering, "LEAKY_RELU", tensors, tensors[0].shape, alpha=alpha)


def _activation(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make | Tensor:
    name = activation_name(node.layer)
    if name == "linear":
        return tensors[0]
    return making(lowering, name.upper(), tensors, tensors[0].shape)


def _extreme(kind: str) -> Lower:
    """The larger or the smaller of several tensors, two at a time."""

    def lower(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
        first, *middle, last = tensors
        for x in middle:
            y = lowering.inner(f"{node.name}/{kind.lower()}", _broadcast(first, x), x.grid)
            first = lowering.program.add(kind, (first, x), y)
        return making(lowering, kind, (first, last), _broadcast(first, last))

    return lower


def _broadcast(a: Tensor, b: Tensor) -> Shape:
    return tuple(
        n if m in (1, None) and n != 1 else m for m, n in zip(a.shape, b.shape, strict=True)
    )


LOWERINGS: dict[type, Lower] = {
    **dict.fromkeys(TRAINING_ONLY, nothing),
    DenseBlock: dense,
    DepthToSpace: pixel_shuffle,
    Quantize: _rescale,
    QuantizedAdd: _pair("ADD"),
    QuantizedAveragePooling2D: pooling("AVERAGE_POOL_2D"),
    QuantizedHardSigmoid: _hard_sigmoid,
    QuantizedLeakyReLU: _leaky_relu,
    QuantizedLookup: _lookup,
    QuantizedMean: _mean,
    QuantizedMultiply: _pair("MUL"),
    QuantizedPReLU: _prelu,
    QuantizedSigmoid: simple("LOGISTIC"),
    QuantizedSoftmax: simple("SOFTMAX", beta=1.0),
    QuantizedSubtract: _pair("SUB"),
    QuantizedTanh: _lookup,
    QuantizedUnitNormalization: simple("L2_NORMALIZATION", fusedActivationFunction="NONE"),
    QuantizedUpSampling2D: up_sampling,
    ConvTransposeBlock: transposed,
    ReparamConv: convolution,
    Slice: slicing,
    _layers.Activation: _activation,
    _layers.Concatenate: concatenation,
    _layers.Cropping2D: cropping,
    _layers.Flatten: reshaping,
    _layers.GlobalAveragePooling2D: reshaping,  # of one pixel; others are quantized layers
    _layers.GlobalMaxPooling2D: largest,
    _layers.MaxPooling2D: pooling("MAX_POOL_2D"),
    _layers.Maximum: _extreme("MAXIMUM"),
    _layers.Minimum: _extreme("MINIMUM"),
    _layers.Permute: permuting,
    _layers.ReLU: _activation,
    _layers.Reshape: reshaping,
    _layers.ZeroPadding2D: padding,
}

"""Convolutions and dense layers of a quantized model, as operators of a file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.arithmetic import limited_scale
from repq_tf.deployment.lowering import IntegerLowering, Lowering, Make
from repq_tf.graphs import Node
from repq_tf.keras_api import Array, Layer, Pair, Shape, ops
from repq_tf.layers.reparam_conv import ConvWeights
from repq_tf.quantization.grids import input_quantizer, known_name
from repq_tf.quantization.operators import activation_name
from repq_tf.reparameterization.merge import stock_padding, without_zeros
from repq_tf.tflite.operators import kernel_layout
from repq_tf.tflite.program import Grid, Tensor, whole
from repq_tf.windows import Window, convolved_size

# The option of an operator that applies an activation.
CLAMPS = {"linear": "NONE", "relu": "RELU", "relu6": "RELU6"}


def convolution(lowering: IntegerLowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A `ReparamConv`: one convolution, behind a PAD if its window is not one of the file's."""
    block, x = node.layer, tensors[0]
    weights, groups = weights_of(lowering, node)
    spatial, channels = x.shape[1:3], x.shape[3]
    window = block.window(spatial)
    size = convolved_size(spatial, window, block.kernel_size, block.strides)
    padding = stock_padding(window, block, spatial)
    if padding is None:
        x, padding = (
            pad(lowering, x, window, f"{known_name(lowering.graph, node)}/pad"),
            "valid",
        )
    integers, (rows, columns) = without_zeros(block, weights[0])
    weights = integers, *weights[1:]
    options = {"padding": padding.upper(), **strides(block.strides)}
    options |= {"dilationHFactor": rows, "dilationWFactor": columns}
    options |= {"fusedActivationFunction": fused_activation(block)}
    kind = "CONV_2D"
    if groups == channels > 1:
        kind = "DEPTHWISE_CONV_2D"
        options["depthMultiplier"] = block.filters // channels
    packed = node.name in lowering.packed

    def make(grid: Grid, name: str) -> Tensor:
        y = lowering.tensor(name, (None, *size, block.filters), grid)
        return weighted(lowering, kind, x, y, weights, packed, **options)

    return make


def dense(lowering: IntegerLowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A `DenseBlock`."""
    x, (weights, _) = tensors[0], weights_of(lowering, node)
    packed = node.name in lowering.packed
    options = {
        "fusedActivationFunction": fused_activation(node.layer),
        "keepNumDims": len(x.shape) > 2,
    }

    def make(grid: Grid, name: str) -> Tensor:
        y = lowering.tensor(name, (*x.shape[:-1], node.layer.filters), grid)
        return weighted(lowering, "FULLY_CONNECTED", x, y, weights, packed, **options)

    return make


def weights_of(lowering: IntegerLowering, node: Node) -> tuple[ConvWeights, int]:
    """The weights of a block, and its groups."""
    quantizer = input_quantizer(lowering.graph, node)
    assert quantizer is not None  # as checked
    *tensors, groups = node.layer.integer_weights(quantizer.step)
    integers, scale, bias = (ops.convert_to_numpy(value) for value in tensors)
    lowering.check_finite(node.name, integers, scale, bias)
    return (integers, scale, bias), groups


def weighted(
    lowering: Lowering,
    kind: str,
    x: Tensor,
    y: Tensor,
    weights: ConvWeights,
    packed: bool = False,
    **options: Any,
) -> Tensor:
    """Adds an operator with a kernel and a bias, and returns its output.

    Of 16-bit features the runtime's fast kernels take biases of 32 bits; those of grouped and
    depthwise convolutions, which they do not have, take 64.

    Args:
        lowering: the `Lowering`.
        kind: of the operator.
        x: the tensor that it reads.
        y: the one that it makes, named after its layer.
        weights: its `ConvWeights`.
        packed: whether the kernel is stored in 4 bits.
        **options: of the operator.
    """
    integers, scale, bias = weights
    values, axis = kernel_layout(integers.astype(np.int8), kind)
    assert x.grid is not None and y.grid is not None  # they are stored
    scale = np.asarray(scale, np.float32)
    if x.type == "int8":
        scale = ops.convert_to_numpy(limited_scale(scale, y.grid.scale / x.grid.scale))
    grid = Grid(scale, 0, axis)
    kernel = Tensor(
        lowering.program.name(f"{y.name}/kernel"),
        "int4" if packed else "int8",
        values.shape,
        grid,
        values,
    )
    grouped = kind == "CONV_2D" and x.shape[-1] != integers.shape[2]
    wide = x.type == "int16" and (grouped or kind == "DEPTHWISE_CONV_2D")
    biases = lowering.program.constant(
        f"{y.name}/bias",
        bias.astype(np.int64 if wide else np.int32),
        Grid(np.float32(x.grid.scale) * grid.scale),
    )
    if x.type == "int16" and kind != "DEPTHWISE_CONV_2D":
        options["quantizedBiasType"] = biases.type
    return lowering.program.add(kind, (x, kernel, biases), y, **options)


def scale_channels(
    lowering: Lowering, x: Tensor, y: Tensor, integers: Array, scale: Array
) -> Tensor:
    """Adds a 1x1 depthwise convolution, and returns its output.

    Args:
        lowering: the `Lowering`.
        x: the features `(batch, ..., channels)`.
        y: its output, of their shape.
        integers: the weights, `(channels,)`.
        scale: their scale, `(channels,)`.
    """
    weights = integers.reshape(1, 1, 1, -1), scale, np.zeros_like(scale)
    options: dict[str, Any] = {"padding": "VALID", **strides((1, 1)), "depthMultiplier": 1}
    options |= {"dilationHFactor": 1, "dilationWFactor": 1}
    if len(x.shape) == 4:
        return weighted(lowering, "DEPTHWISE_CONV_2D", x, y, weights, **options)
    flat = (None, 1, 1, x.shape[-1])
    inner = lowering.inner(f"{y.name}/image", flat, y.grid)
    image = reshape(lowering, x, flat, f"{y.name}/input")
    weighted(lowering, "DEPTHWISE_CONV_2D", image, inner, weights, **options)
    return _add_reshape(lowering, inner, y)


def reshape(lowering: Lowering, x: Tensor, shape: Shape, name: str) -> Tensor:
    """A tensor with another shape; itself, if that is its own."""
    if x.shape == shape:
        return x
    return _add_reshape(lowering, x, lowering.inner(name, shape, x.grid))


def _add_reshape(lowering: Lowering, x: Tensor, y: Tensor) -> Tensor:
    sizes = whole([-1 if n is None else n for n in y.shape])
    shape = lowering.program.constant("shape", sizes)
    return lowering.program.add("RESHAPE", (x, shape), y, newShape=sizes)


def pad(lowering: Lowering, x: Tensor, window: Window, name: str) -> Tensor:
    """Features with zeros beside them."""
    spatial = [
        None if n is None else n + sum(zeros)
        for n, zeros in zip(x.shape[1:3], window, strict=True)
    ]
    y = lowering.inner(name, (x.shape[0], *spatial, *x.shape[3:]), x.grid)
    sides = lowering.program.constant("paddings", whole(((0, 0), *window, (0, 0))))
    return lowering.program.add_once("PAD", (x, sides), y)


def strides(pixels: Pair) -> dict[str, int]:
    """The options of an operator that moves by some pixels."""
    return dict(zip(("strideH", "strideW"), map(int, pixels), strict=True))


def fused_activation(layer: Layer) -> str:
    """The option of an operator that applies a layer's activation."""
    return CLAMPS[activation_name(layer)]

"""Convolutions and dense layers of a float model, as operators of a file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.deployment.convolutions import CLAMPS, strides
from repq_tf.deployment.float_activations import ACTIVATIONS, Calculation
from repq_tf.deployment.lowering import Lowering, Make
from repq_tf.deployment.moves import making
from repq_tf.graphs import Node
from repq_tf.keras_api import Array, Layer, Pair, Shape, ops
from repq_tf.layers.stock import StockConvolution, normalization
from repq_tf.quantization.operators import activation_name
from repq_tf.tflite.operators import kernel_layout
from repq_tf.tflite.program import Tensor, whole
from repq_tf.windows import VALID, convolved_size


def convolution(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A `Conv2D` or `DepthwiseConv2D`, with the batch norm behind it."""
    layer = node.layer
    affine = StockConvolution(layer).merge()
    weights = _normalized(lowering, node, affine.kernel, affine.bias)
    sizes = layer.padding, layer.strides, layer.dilation_rate
    return _activated(lowering, node, tensors[0], weights, affine.groups, *sizes)


def separable(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A `SeparableConv2D`: two convolutions."""
    layer, (x,) = node.layer, tensors
    kernel = _array(layer.depthwise_kernel)
    kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    no_bias = np.zeros(kernel.shape[3])
    sizes = layer.padding, layer.strides, layer.dilation_rate
    make = _convolve(lowering, node.name, x, (kernel, no_bias), x.shape[3], *sizes, "NONE")
    x = make(None, lowering.program.name(f"{node.name}/depthwise"))
    pointwise = _array(layer.pointwise_kernel)
    weights = _normalized(lowering, node, pointwise, _bias(layer, pointwise.shape[3]))
    return _activated(lowering, node, x, weights, 1, "valid", (1, 1), (1, 1))


def dense(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A `Dense` layer, with the batch norm behind it."""
    affine = StockConvolution(node.layer).merge()
    weights = _normalized(lowering, node, affine.kernel, affine.bias)
    fused, rest = _clamp(lowering, node)
    make = _connect(lowering, node.name, tensors[0], weights, fused)
    return _then(lowering, node, make, rest)


def squeeze(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A `SqueezeExcite`, on features `(batch, 1, 1, channels)`."""
    layer, (x,), calculate = node.layer, tensors, Calculation(lowering, node.name)
    gate = x if x.shape[1:3] == (1, 1) else calculate.mean(x, (1, 2))
    for part, fused in ((layer.reduce, "RELU"), (layer.expand, "NONE")):
        weights = _array(part.kernel), _array(part.bias)
        make = _connect(lowering, f"{node.name}/{part.name}", gate, weights, fused)
        gate = make(None, lowering.program.name(f"{node.name}/{part.name}"))
    options = {"fusedActivationFunction": lowering.fused_activation(node)}
    return calculate.last("MUL", x, calculate("LOGISTIC", gate), **options)


def transposed(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A `Conv2DTranspose`, with the batch norm behind it; of a batch that is open."""
    layer, (x,), program = node.layer, tensors, lowering.program
    kernel = _array(layer.kernel).transpose(0, 1, 3, 2)  # (kh, kw, in, out)
    kernel, bias = _normalized(lowering, node, kernel, _bias(layer, kernel.shape[3]))
    shape = (None, *layer.compute_output_shape(x.shape)[1:])
    sizes = Tensor(program.name(f"{node.name}/sizes"), "int32", (4,))
    program.add("SHAPE", (x,), sizes, outType="int32")
    batch = Tensor(program.name(f"{node.name}/batch"), "int32", ())
    ends = (program.constant("ends", whole([end])) for end in (0, 1, 1))
    program.add("STRIDED_SLICE", (sizes, *ends), batch, shrinkAxisMask=1)
    rest = (program.constant("pixels", whole(size)) for size in shape[1:])
    wanted = Tensor(program.name(f"{node.name}/shape"), "int32", (4,))
    program.add("PACK", (batch, *rest), wanted, valuesCount=4, axis=0)
    values = np.ascontiguousarray(kernel.transpose(3, 0, 1, 2), np.float32)
    constants = program.constant(f"{node.name}/kernel", values), x
    biases = program.constant(f"{node.name}/bias", bias.astype(np.float32))
    fused, other = _clamp(lowering, node)
    options = {"padding": layer.padding.upper(), **strides(layer.strides)}
    options |= {"fusedActivationFunction": fused}
    make = making(lowering, "TRANSPOSE_CONV", (wanted, *constants, biases), shape, **options)
    return _then(lowering, node, make, other)


def _activated(
    lowering: Any,
    node: Node,
    x: Tensor,
    weights: tuple[Array, Array],
    groups: int,
    padding: str,
    pixels: Pair,
    dilation: Pair,
) -> Make:
    """A convolution and its activation."""
    sizes = padding, pixels, dilation
    fused, rest = _clamp(lowering, node)
    make = _convolve(lowering, node.name, x, weights, groups, *sizes, fused)
    return _then(lowering, node, make, rest)


def _clamp(lowering: Any, node: Node) -> tuple[str, str]:
    """The activation that an operator applies, and the one that operators behind it do."""
    if lowering.fusion(node).activation != "linear":
        return lowering.fused_activation(node), "linear"
    name = activation_name(node.layer)
    return (CLAMPS[name], "linear") if name in CLAMPS else ("NONE", name)


def _then(lowering: Lowering, node: Node, make: Make, activation: str) -> Make:
    """What makes an activation of what another one makes."""
    if activation == "linear":
        return make
    x = make(None, lowering.program.name(f"{node.name}/linear"))
    return ACTIVATIONS[activation](lowering, node.name, x)


def _normalized(lowering: Any, node: Node, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """A kernel `(..., out)` and a bias, with the batch norm that is fused into the node."""
    norm = lowering.fusion(node).batch_norm
    if norm is not None:
        mean, gain, beta = normalization(norm)
        kernel, bias = kernel * gain, (bias - mean) * gain + beta
    lowering.check_finite(node.name, kernel, bias)
    return kernel, bias


def _convolve(
    lowering: Lowering,
    name: str,
    x: Tensor,
    weights: tuple[Array, Array],
    groups: int,
    padding: str,
    pixels: Pair,
    dilation: Pair,
    fused: str,
) -> Make:
    (kernel, bias), channels, spatial = weights, x.shape[3], x.shape[1:3]
    options: dict[str, Any] = {"padding": padding.upper(), **strides(pixels)}
    options |= {"fusedActivationFunction": fused}
    options |= dict(zip(("dilationHFactor", "dilationWFactor"), dilation, strict=True))
    height, width = (1 + (n - 1) * d for n, d in zip(kernel.shape[:2], dilation, strict=True))
    if padding == "same":
        size: Shape = tuple(n and -(-n // s) for n, s in zip(spatial, pixels, strict=True))
    else:
        size = convolved_size(spatial, VALID, (height, width), pixels)
    kind = "CONV_2D"
    if groups == channels > 1:
        kind = "DEPTHWISE_CONV_2D"
        options["depthMultiplier"] = kernel.shape[3] // channels
    inputs = x, *_constants(lowering, name, kernel, bias, kind)
    return making(lowering, kind, inputs, (None, *size, kernel.shape[3]), **options)


def _connect(
    lowering: Lowering, name: str, x: Tensor, weights: tuple[Array, Array], fused: str
) -> Make:
    kernel, bias = weights
    inputs = x, *_constants(lowering, name, kernel, bias, "FULLY_CONNECTED")
    options = {"fusedActivationFunction": fused, "keepNumDims": len(x.shape) > 2}
    shape = (*x.shape[:-1], kernel.shape[-1])
    return making(lowering, "FULLY_CONNECTED", inputs, shape, **options)


def _constants(
    lowering: Lowering, name: str, kernel: Array, bias: Array, kind: str
) -> tuple[Tensor, Tensor]:
    values, _ = kernel_layout(kernel.astype(np.float32), kind)
    program = lowering.program
    return (
        program.constant(f"{name}/kernel", values),
        program.constant(f"{name}/bias", bias.astype(np.float32)),
    )


def _bias(layer: Layer, channels: int) -> Array:
    return _array(layer.bias) if layer.use_bias else np.zeros(channels)


def _array(variable: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(variable), np.float64)

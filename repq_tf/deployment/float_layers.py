"""What each layer of a float model becomes in a file: one entry each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.deployment.convolutions import reshape
from repq_tf.deployment.float_activations import (
    ACTIVATIONS,
    Activate,
    Calculation,
    clamp,
    elu,
    leaky_relu,
    softmax,
)
from repq_tf.deployment.float_weights import convolution, dense, separable, squeeze, transposed
from repq_tf.deployment.lowering import Lower, Lowering, Make
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
from repq_tf.graphs import Node
from repq_tf.keras_api import LEGACY, Layer, keras, ops
from repq_tf.layers import DepthToSpace, SqueezeExcite
from repq_tf.layers.slice import Slice
from repq_tf.layers.stock import normalization, normalized_axis
from repq_tf.quantization.operators import activation_name
from repq_tf.tflite.program import Tensor, whole

_layers = keras.layers


def _pairs(kind: str) -> Lower:
    """An operator on two tensors, applied to two or more from the first to the last."""

    def lower(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
        calculate = Calculation(lowering, node.name)
        first, *others, last = _of_one_rank(lowering, node, tensors)
        options = {}
        if kind in ("ADD", "MUL", "SUB"):
            options = {"fusedActivationFunction": "NONE"}
        for tensor in others:
            first = calculate(kind, first, tensor, **options)
        if options:
            options = {"fusedActivationFunction": lowering.fused_activation(node)}
        return calculate.last(kind, first, last, **options)

    return lower


def _of_one_rank(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors with sizes of 1 behind the batch where others have more axes, as in Keras."""
    rank = max(len(tensor.shape) for tensor in tensors)
    name = f"{node.name}/reshaped"

    def raised(x: Tensor) -> Tensor:
        ones = (1,) * (rank - len(x.shape))
        return reshape(lowering, x, (x.shape[0], *ones, *x.shape[1:]), name)

    return [raised(tensor) for tensor in tensors]


def _average(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    calculate = Calculation(lowering, node.name)
    total, *others = _of_one_rank(lowering, node, tensors)
    for tensor in others:
        total = calculate.sum(total, tensor)
    return calculate.last("MUL", total, 1 / len(tensors), fusedActivationFunction="NONE")


def _batch_norm(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    mean, gain, beta = normalization(node.layer)
    return _scaled(lowering, node, tensors[0], gain, beta - mean * gain)


def _rescaling(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    layer = node.layer
    return _scaled(lowering, node, tensors[0], layer.scale, layer.offset)


def _normalization(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    layer = node.layer
    mean, variance = (
        np.asarray(ops.convert_to_numpy(value), np.float64)
        for value in (layer.mean, layer.variance)
    )
    gain = 1 / np.maximum(np.sqrt(variance), keras.backend.epsilon())
    return _scaled(lowering, node, tensors[0], gain, -mean * gain)


def _scaled(lowering: Any, node: Node, x: Tensor, gain: Any, shift: Any) -> Make:
    """`gain x + shift`, and the clamp behind it."""
    calculate = Calculation(lowering, node.name)
    activation = lowering.fused_activation(node)
    if np.any(np.asarray(shift)):
        product = x if np.all(np.asarray(gain) == 1) else calculate.product(x, gain)
        return calculate.last("ADD", product, shift, fusedActivationFunction=activation)
    return calculate.last("MUL", x, gain, fusedActivationFunction=activation)


def _layer_norm(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    """`(x - mean) / sqrt(variance + epsilon) gamma + beta`, over some of the last axes."""
    layer, (x,), calculate = node.layer, tensors, Calculation(lowering, node.name)
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    mean = calculate.mean(x, axes)
    variance = calculate.mean(calculate("SQUARED_DIFFERENCE", x, mean), axes)
    factor = calculate("RSQRT", calculate.sum(variance, layer.epsilon))
    if layer.scale:
        factor = calculate.product(factor, ops.convert_to_numpy(layer.gamma))
    centred = calculate("SUB", x, mean, fusedActivationFunction="NONE")
    if not layer.center:
        return calculate.last("MUL", centred, factor, fusedActivationFunction="NONE")
    beta = ops.convert_to_numpy(layer.beta)
    return calculate.last(
        "ADD", calculate.product(centred, factor), beta, fusedActivationFunction="NONE"
    )


def _activation(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make | Tensor:
    if activation_name(node.layer) == "linear":
        return tensors[0]
    return ACTIVATIONS[activation_name(node.layer)](lowering, node.name, tensors[0])


def _relu(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    return _clamp_of(node.layer)(lowering, node.name, tensors[0])


def _clamp_of(layer: Layer) -> Activate:
    """What a `ReLU` layer computes."""
    name = activation_name(layer)
    if name == "leaky_relu":
        return leaky_relu(float(layer.negative_slope))
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    return clamp(0, float(layer.max_value))


def _leaky_relu(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    slope = node.layer.alpha if LEGACY else node.layer.negative_slope
    return leaky_relu(float(slope))(lowering, node.name, tensors[0])


def _elu(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    return elu(float(node.layer.alpha))(lowering, node.name, tensors[0])


def _softmax(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    return softmax(node.layer.axis)(lowering, node.name, tensors[0])


def _prelu(lowering: Any, node: Node, tensors: Sequence[Tensor]) -> Make:
    alpha = ops.convert_to_numpy(node.layer.alpha)
    calculate = Calculation(lowering, node.name)
    return making(lowering, "PRELU", (tensors[0], calculate.constant(alpha)), tensors[0].shape)


def _mean(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    axes, (x,) = lowering.program.constant("axes", whole(PIXELS)), tensors
    shape = (None, *((1, 1) if node.layer.keepdims else ()), x.shape[3])
    return making(lowering, "MEAN", (x, axes), shape, keepDims=node.layer.keepdims)


def _up_sampling(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """As in an integer file; of images of any size, to a size that the file computes."""
    layer, (x,), program = node.layer, tensors, lowering.program
    if None not in x.shape[1:3]:
        return up_sampling(lowering, node, tensors)
    pixels = image_size(lowering, x, node.name)
    size = Tensor(program.name(f"{node.name}/size"), "int32", (2,))
    factors = program.constant("factors", whole(layer.size))
    program.add("MUL", (pixels, factors), size, fusedActivationFunction="NONE")
    bilinear = layer.interpolation == "bilinear"
    kind = "RESIZE_BILINEAR" if bilinear else "RESIZE_NEAREST_NEIGHBOR"
    spatial = (n and n * f for n, f in zip(x.shape[1:3], layer.size, strict=True))
    shape = (None, *spatial, x.shape[3])
    return making(lowering, kind, (x, size), shape, halfPixelCenters=bilinear)


def image_size(lowering: Lowering, x: Tensor, name: str) -> Tensor:
    """The height and width of images, which the file computes."""
    program = lowering.program
    sizes = Tensor(program.name(f"{name}/sizes"), "int32", (4,))
    program.add("SHAPE", (x,), sizes, outType="int32")
    pixels = Tensor(program.name(f"{name}/pixels"), "int32", (2,))
    ends = (program.constant("ends", whole([end])) for end in (1, 3, 1))
    program.add("STRIDED_SLICE", (sizes, *ends), pixels)
    return pixels


# By class; those without operators in inference among them.
_SILENT = (
    "ActivityRegularization AlphaDropout Dropout GaussianDropout GaussianNoise Identity "
    "RandomBrightness RandomContrast RandomFlip RandomRotation RandomTranslation RandomZoom "
    "SpatialDropout2D"
).split()
FLOAT_LOWERINGS: dict[type, Lower] = {
    DepthToSpace: pixel_shuffle,
    Slice: slicing,
    SqueezeExcite: squeeze,
    _layers.Activation: _activation,
    _layers.Add: _pairs("ADD"),
    _layers.Average: _average,
    _layers.AveragePooling2D: pooling("AVERAGE_POOL_2D"),
    _layers.BatchNormalization: _batch_norm,
    _layers.Concatenate: concatenation,
    _layers.Conv2D: convolution,
    _layers.Conv2DTranspose: transposed,
    _layers.Cropping2D: cropping,
    _layers.Dense: dense,
    _layers.DepthwiseConv2D: convolution,
    _layers.ELU: _elu,
    _layers.Flatten: reshaping,
    _layers.GlobalAveragePooling2D: _mean,
    _layers.GlobalMaxPooling2D: largest,
    _layers.LayerNormalization: _layer_norm,
    _layers.LeakyReLU: _leaky_relu,
    _layers.MaxPooling2D: pooling("MAX_POOL_2D"),
    _layers.Maximum: _pairs("MAXIMUM"),
    _layers.Minimum: _pairs("MINIMUM"),
    _layers.Multiply: _pairs("MUL"),
    _layers.Normalization: _normalization,
    _layers.PReLU: _prelu,
    _layers.Permute: permuting,
    _layers.ReLU: _relu,
    _layers.Rescaling: _rescaling,
    _layers.Reshape: reshaping,
    _layers.SeparableConv2D: separable,
    _layers.Softmax: _softmax,
    _layers.Subtract: _pairs("SUB"),
    _layers.UnitNormalization: simple("L2_NORMALIZATION", fusedActivationFunction="NONE"),
    _layers.UpSampling2D: _up_sampling,
    _layers.ZeroPadding2D: padding,
    **{getattr(_layers, name): nothing for name in _SILENT if hasattr(_layers, name)},
}


def refusal(layer: Layer) -> str | None:
    """Why a layer of a float model cannot be written to a file; None if it can."""
    if type(layer) not in FLOAT_LOWERINGS:
        return "no operator"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "data_format='channels_first'"
    if isinstance(layer, _layers.UpSampling2D) and layer.interpolation not in (
        "nearest",
        "bilinear",
    ):
        return f"interpolation={layer.interpolation!r}"
    if isinstance(layer, _layers.BatchNormalization) and normalized_axis(layer) is None:
        return f"axis={layer.axis}"
    if isinstance(layer, _layers.Softmax) and not isinstance(layer.axis, int):
        return f"axis={layer.axis}"
    if isinstance(layer, _layers.UnitNormalization) and layer.axis not in (-1, [-1]):
        return f"axis={layer.axis}"
    if isinstance(layer, _layers.Normalization) and getattr(layer, "invert", False):
        return "invert=True"
    if isinstance(layer, _layers.Conv2DTranspose) and tuple(layer.dilation_rate) != (1, 1):
        return f"dilation_rate={layer.dilation_rate}"
    if isinstance(layer, _layers.Conv2DTranspose) and layer.output_padding is not None:
        return f"output_padding={layer.output_padding}"
    if isinstance(layer, _layers.ReLU):
        name, limit = activation_name(layer), layer.max_value
        bounded = not layer.threshold and not layer.negative_slope and limit is not None
        return None if name in ACTIVATIONS or bounded else name
    if getattr(layer, "activation", None) is not None:
        name = activation_name(layer)
        return None if name in ("linear", *ACTIVATIONS) else f"activation={name!r}"
    return None

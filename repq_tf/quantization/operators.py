"""The operators that can be quantized beside convolutions: one entry each.

A new one needs an entry here, its quantized layer in `repq_tf.layers` and what that becomes
in a file, in `repq_tf.deployment.operators`.
"""

import dataclasses
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np

from repq_tf.graphs import copy_layer, layer_of_function
from repq_tf.keras_api import Layer, keras, ops
from repq_tf.layers import (
    DepthToSpace,
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
    Slice,
    SqueezeExcite,
)
from repq_tf.layers.activations import activation_of, gelu_approximate
from repq_tf.layers.quantized.up_sampling import INTERPOLATIONS
from repq_tf.layers.stock import TRAINING_ONLY

_layers = keras.layers
FUSED = ("linear", "relu", "relu6")
# Returns why a layer cannot be quantized, or None.
Check: TypeAlias = Callable[[Layer], str | None]


@dataclasses.dataclass(frozen=True)
class Operator:
    """How a layer of the float model is quantized.

    Attributes:
        kind: "new_scale" stores a tensor on a grid of its own; "same_scale" on that of its
            inputs; "fixed" on one that the runtime prescribes.
        make: `make(site, input_zero_point, **options)` returns the quantized layer; None
            where the layer itself only moves numbers, or takes some of them.
        wide_input: True: tensors read only by such operators default to 8 bits, being
            intermediate results. None: no say.
        check: `check(layer)` returns why the layer cannot be quantized, or None.
        int16: whether it takes activations of 16 bits.
        step: of a "fixed" grid.
        signed: whether results can be negative; None: where inputs can.
    """

    kind: str
    make: Any = None
    wide_input: bool | None = False
    check: Any = None
    int16: bool = False
    step: float | None = None
    signed: bool | None = None


def _add(site: Any, input_zero_point: int, **options: Any) -> Layer:
    return QuantizedAdd(activation=site.activation, **options)


def _multiply(site: Any, input_zero_point: int, **options: Any) -> Layer:
    return QuantizedMultiply(activation=site.activation, **options)


def _prescribed(
    kind: Any,
    wide_input: bool | None = True,
    check: Check | None = None,
) -> Operator:
    def make(site: Any, input_zero_point: int, **options: Any) -> Layer:
        return kind(name=options["name"], dtype=options["dtype"])

    return Operator("fixed", make, wide_input, check, step=kind.STEP, signed=kind.SIGNED)


def _subtract(site: Any, input_zero_point: int, **options: Any) -> Layer:
    return QuantizedSubtract(activation=site.activation, **options)


def _lookup(site: Any, input_zero_point: int, **options: Any) -> Layer:
    layer, dtype = site.layer, "float32"
    if type(layer) is not _layers.Activation:
        return QuantizedLookup(copy_layer(layer, dtype=dtype), **options)
    # By its name, which a file holds, whatever function the layer was given.
    function = _layers.Activation(activation_of(activation_name(layer)), dtype=dtype)
    return QuantizedLookup(function, **options)


def _mean(site: Any, input_zero_point: int, **options: Any) -> Layer:
    keepdims = site.layer.keepdims
    return QuantizedMean(keepdims=keepdims, input_zero_point=input_zero_point, **options)


def _average_pooling(site: Any, input_zero_point: int, **options: Any) -> Layer:
    pool = site.layer
    return QuantizedAveragePooling2D(
        pool.pool_size,
        pool.strides,
        pool.padding,
        input_zero_point=input_zero_point,
        **options,
    )


def _prelu(site: Any, input_zero_point: int, **options: Any) -> Layer:
    return QuantizedPReLU(
        alpha_regularizer=site.layer.alpha_regularizer,
        alpha_constraint=site.layer.alpha_constraint,
        trainable_alpha=site.layer.trainable,
        **options,
    )


def _check_prelu(layer: Layer) -> str | None:
    if all(size == 1 for size in layer.alpha.shape[:-1]):
        return None
    return (
        "alpha must be the same at all pixels; make it with shared_axes=[1, 2]. Received: "
        f"alpha of shape {tuple(layer.alpha.shape)}"
    )


def _leaky_relu(site: Any, input_zero_point: int, **options: Any) -> Layer:
    # Of any of the layers and Kerases, which disagree in names and defaults.
    slope = -np.ravel(ops.convert_to_numpy(site.layer(np.array([[-1.0]], np.float32))))[0]
    return QuantizedLeakyReLU(float(slope), **options)


def _check_softmax(layer: Layer) -> str | None:
    axis = getattr(layer, "axis", -1)
    return None if axis == -1 else f"a softmax's axis must be -1. Received: {axis}"


def _check_unit_normalization(layer: Layer) -> str | None:
    if layer.axis in (-1, [-1]):
        return None
    return f"its axis must be -1, that of the channels. Received: {layer.axis}"


def _up_sampling(site: Any, input_zero_point: int, **options: Any) -> Layer:
    layer = site.layer
    return QuantizedUpSampling2D(layer.size, layer.interpolation, input_zero_point, **options)


def _check_up_sampling(layer: Layer) -> str | None:
    if layer.interpolation in INTERPOLATIONS:
        return None
    return f"interpolation must be one of {INTERPOLATIONS}. Received: {layer.interpolation!r}"


_KEEPS_SCALE = Operator("same_scale", int16=True)
_KEEPS_SCALE_8 = Operator("same_scale")
_LEAKY_RELU = Operator("same_scale", _leaky_relu)
_LOOKUP = Operator("new_scale", _lookup)
_POSITIVE_LOOKUP = Operator("new_scale", _lookup, signed=False)
_SOFTMAX = _prescribed(QuantizedSoftmax, wide_input=False, check=_check_softmax)
_UNIT = _prescribed(
    QuantizedUnitNormalization, wide_input=False, check=_check_unit_normalization
)

_FUNCTIONS = (
    "celu elu gelu gelu_approximate hard_shrink hard_tanh mish selu soft_shrink softsign "
    "tanh_shrink"
).split()
_POSITIVE_FUNCTIONS = "exponential softplus sparse_plus sparse_sigmoid squareplus".split()

OPERATORS = {
    **dict.fromkeys(TRAINING_ONLY, _KEEPS_SCALE),
    DepthToSpace: _KEEPS_SCALE,
    _layers.Add: Operator("new_scale", _add, int16=True),
    _layers.AveragePooling2D: Operator("same_scale", _average_pooling, int16=True),
    _layers.Concatenate: _KEEPS_SCALE,
    _layers.Cropping2D: _KEEPS_SCALE,
    _layers.ELU: _LOOKUP,
    _layers.Flatten: _KEEPS_SCALE,
    _layers.GlobalAveragePooling2D: Operator("new_scale", _mean, wide_input=None, int16=True),
    _layers.GlobalMaxPooling2D: _KEEPS_SCALE,
    _layers.LeakyReLU: _LEAKY_RELU,
    _layers.MaxPooling2D: _KEEPS_SCALE,
    _layers.Maximum: _KEEPS_SCALE_8,
    _layers.Minimum: _KEEPS_SCALE_8,
    _layers.Multiply: Operator("new_scale", _multiply, wide_input=True),
    _layers.PReLU: Operator(
        "new_scale", _prelu, wide_input=True, check=_check_prelu, int16=True
    ),
    _layers.Permute: _KEEPS_SCALE,
    _layers.Reshape: _KEEPS_SCALE,
    _layers.Softmax: _SOFTMAX,
    Slice: _KEEPS_SCALE,
    _layers.Subtract: Operator("new_scale", _subtract, signed=True),
    _layers.UnitNormalization: _UNIT,
    _layers.UpSampling2D: Operator("same_scale", _up_sampling, check=_check_up_sampling),
    _layers.ZeroPadding2D: _KEEPS_SCALE,
}
# Of the layers `ReLU` and `Activation`, by what they compute.
ACTIVATIONS = {
    "hard_sigmoid": _prescribed(QuantizedHardSigmoid),
    "leaky_relu": _LEAKY_RELU,
    "log_sigmoid": Operator("new_scale", _lookup, signed=True),  # negative everywhere
    "sigmoid": _prescribed(QuantizedSigmoid),
    "softmax": _SOFTMAX,
    "tanh": _prescribed(QuantizedTanh),
    # Functions of single values, by the names of Keras's activations.
    **dict.fromkeys(_FUNCTIONS, _LOOKUP),
    **dict.fromkeys(_POSITIVE_FUNCTIONS, _POSITIVE_LOOKUP),
}
# Of any layer, but as nodes of their own: `expand` puts them there.
APART = (*ACTIVATIONS, "hard_silu", "silu")
# Two stored tensors with an activation fused into what comes out.
TWO_INPUTS = (_layers.Add, _layers.Multiply, _layers.Subtract)


def find_operator(layer: Layer) -> Operator | None:
    """The `Operator` of a layer, or None."""
    if type(layer) in (_layers.ReLU, _layers.Activation):
        return ACTIVATIONS.get(activation_name(layer))
    return OPERATORS.get(type(layer))


def activation_name(layer: Layer) -> str:
    """The name of the activation that a layer is or applies."""
    if isinstance(layer, _layers.ReLU):
        slope, limit = layer.negative_slope, layer.max_value
        if layer.threshold or (slope and limit is not None):
            return "ReLU with a threshold, or with a slope and a limit"
        limit = limit if limit is None else float(limit)
        return "leaky_relu" if slope else {None: "relu", 6.0: "relu6"}.get(limit, "ReLU")
    if isinstance(layer, _layers.Softmax):
        return "softmax"
    return _function_name(layer.activation)


def _function_name(function: Any) -> str:
    """The name of an activation; of a function around one operation, that of what it means."""
    name = getattr(function, "__name__", type(function).__name__)
    if function is gelu_approximate or isinstance(function, Layer):
        return name
    named = getattr(keras.activations, name, None) is function
    if named and isinstance(function, FunctionType):
        serialized = keras.activations.serialize(function)
        name = serialized if isinstance(serialized, str) else name
        return _ALIASES.get(name, name)
    if name in _FOREIGN and str(function.__module__).split(".")[0] in ("jax", "tensorflow"):
        return _ALIASES.get(name, name)
    means = layer_of_function(function)
    meant = None if means is None else _meant_name(means)
    # Those that are fused stay what they are given as.
    if meant is not None and (meant == name or meant in APART):
        return meant
    return f"{name}, a function of its own"


def _meant_name(layer: Layer) -> str | None:
    """The name of the function of Keras that a layer computes; None: with other options."""
    if isinstance(layer, _layers.Activation | _layers.ReLU):
        return activation_name(layer)
    usual = {
        _layers.ELU: ("elu", "alpha", 1.0),
        _layers.LeakyReLU: ("leaky_relu", "negative_slope", 0.2),
        _layers.Softmax: ("softmax", "axis", -1),
    }
    if type(layer) not in usual:
        return None
    name, option, value = usual[type(layer)]
    return name if getattr(layer, option) == value else None


_ALIASES = {"hard_swish": "hard_silu", "softmax_v2": "softmax", "swish": "silu"}
# Functions of TensorFlow and of JAX that are, by default, Keras's of the same names.
_FOREIGN = "elu relu relu6 selu sigmoid silu softmax softmax_v2 softplus swish tanh".split()


def is_one_pixel(layer: Layer) -> bool:
    """Whether a layer is a mean of a single pixel."""
    if not isinstance(layer, _layers.GlobalAveragePooling2D | SqueezeExcite):
        return False
    try:
        return tuple(layer.input.shape[1:3]) == (1, 1)
    except (AttributeError, ValueError):  # called more than once: several inputs
        return False

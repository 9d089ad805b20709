"""Operations that are no layers, `x + 1` or `keras.ops.mean(x)`, as layers of one meaning."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from repq_tf.keras_api import Config, Layer, Shape, keras, ops
from repq_tf.layers.activations import gelu_approximate
from repq_tf.layers.slice import Slice

_layers = keras.layers
# A layer and what it is called with; None where no layer means the same.
Found: TypeAlias = tuple[Layer, tuple[Any, ...]] | None
Operation: TypeAlias = Any  # `keras.Operation`, whose base class `Layer` has, too
_PIXELS = (1, 2)  # the axes of height and width
_LEAST_LENGTH = 1e-6  # of vectors that count as others than zeros


class OperationLayer(Layer):
    """An operation that no layer means the same as: it runs, and is passed on as it is.

    Args:
        operation: a `keras.Operation`.
    """

    def __init__(self, operation: Operation) -> None:
        super().__init__(name=operation.name)
        self.operation = operation

    @property
    def kind(self) -> str:
        """The operation's name in messages."""
        return f"the operation {type(self.operation).__name__}"

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the operation."""
        return self.operation(*args, **kwargs)


class _Call:
    """One call of an operation.

    Attributes:
        name: of the operation.
        config: its settings.
        args: what it is called with, in order; tensors have shapes.
    """

    def __init__(
        self, operation: Operation, args: Sequence[Any], kwargs: Config, shape_of: Any
    ) -> None:
        self.name, self.config = operation.name, operation.get_config()
        self.args = [*args, *kwargs.values()]
        self._shape_of = shape_of

    def shape(self, index: int = 0) -> Shape:
        """The shape of an argument that is a tensor; () of any other."""
        shape = self._shape_of(self.args[index])
        return () if shape is None else tuple(shape)

    def is_tensor(self, index: int) -> bool:
        """Whether an argument is a tensor of the model."""
        return self._shape_of(self.args[index]) is not None

    def one(self, layer: type[Layer], **options: Any) -> Found:
        """A layer of the first argument."""
        return layer(name=self.name, **options), (self.args[0],)


def as_layer(
    operation: Operation,
    args: Sequence[Any],
    kwargs: Config,
    shape_of: Callable[[Any], Shape | None],
) -> tuple[Layer, tuple[Any, ...], Config]:
    """The layer that means the same as a call of an operation, and what it is called with.

    Args:
        operation: a `keras.Operation` that is no layer.
        args: its positional arguments: tensors, constants and other values.
        kwargs: its keyword arguments.
        shape_of: the shape of a tensor among them; None of what is none.

    Returns:
        The layer, named as the operation, its arguments and keyword arguments: an
        `OperationLayer` with the given ones where no layer means the same.
    """
    reading = _READINGS.get(type(operation).__name__)
    if reading is not None:
        found = reading(_Call(operation, args, kwargs, shape_of))
        if found is not None:
            return *found, {}
    if type(operation).__name__ == "GetItem":  # a configuration has no tuples
        args = [args[0], tuple(args[1]) if isinstance(args[1], list) else args[1]]
    return OperationLayer(operation), tuple(args), kwargs


# Sums and products of tensors, and with constants.


def _pair(layer: type[Layer], constant: Callable[[Any, bool], Config | None]) -> Any:
    """An operation on two tensors, or on one and a constant.

    Args:
        layer: that of two tensors.
        constant: the settings of the `Rescaling` by a constant, and whether that is the
            first argument; or None.
    """

    def read(call: _Call) -> Found:
        if call.is_tensor(0) and call.is_tensor(1):
            if len(call.shape(0)) != len(call.shape(1)) or layer is _layers.Layer:
                return None
            return layer(name=call.name), (list(call.args[:2]),)
        first = not call.is_tensor(0)
        value = per_channel(call.args[0 if first else 1], call.shape(int(first)))
        options = None if value is None else constant(value, first)
        if options is None:
            return None
        made = _layers.Rescaling(name=call.name, **{"scale": 1.0, **options})
        return made, (call.args[int(first)],)

    return read


def per_channel(value: Any, shape: Shape) -> Any:
    """A constant as a number or a list with one for each channel of a shape; or None."""
    array = np.asarray(ops.convert_to_numpy(value) if hasattr(value, "shape") else value)
    if array.dtype.kind not in "iuf" or array.ndim > len(shape):
        return None
    if array.size == 1:
        return float(array.reshape(()))
    if array.shape[-1] != array.size or array.size != shape[-1]:
        return None
    return [float(number) for number in array.ravel()]


def _inverse(value: Any) -> Any:
    return [1 / v for v in value] if isinstance(value, list) else 1 / value


def _negative(value: Any) -> Any:
    return [-v for v in value] if isinstance(value, list) else -value


def _add(value: Any, first: bool) -> Config:
    return {"offset": value}


def _subtract(value: Any, first: bool) -> Config:
    return {"scale": -1.0, "offset": value} if first else {"offset": _negative(value)}


def _multiply(value: Any, first: bool) -> Config:
    return {"scale": value}


def _divide(value: Any, first: bool) -> Config | None:
    if first or not np.all(value):
        return None
    return {"scale": _inverse(value)}


def _limit(layer: type[Layer]) -> Any:
    """The larger or the smaller of two tensors; of one and 0, a ReLU."""

    def read(call: _Call) -> Found:
        if call.is_tensor(0) and call.is_tensor(1):
            return layer(name=call.name), (list(call.args[:2]),)
        first = not call.is_tensor(0)
        value = per_channel(call.args[0 if first else 1], call.shape(int(first)))
        if layer is _layers.Maximum and value == 0.0:
            return _layers.ReLU(name=call.name), (call.args[int(first)],)
        return None

    return read


# Functions of single values.


def _activation(name: str, **options: float) -> Any:
    """An operation that is one of Keras's activations, with these options or none."""

    def read(call: _Call) -> Found:
        if any(call.config[key] != value for key, value in options.items()):
            return None
        return call.one(_layers.Activation, activation=name)

    return read


def _gelu(call: _Call) -> Found:
    approximate = call.config["approximate"]
    return call.one(_layers.Activation, activation=gelu_approximate if approximate else "gelu")


def _clip(call: _Call) -> Found:
    low, high = call.config["x_min"], call.config["x_max"]
    if np.ndim(low) or np.ndim(high) or low != 0 or high is None or high <= 0:
        return None
    return call.one(_layers.ReLU, max_value=float(high))


def _elu(call: _Call) -> Found:
    return call.one(_layers.ELU, alpha=call.config["alpha"])


def _normalize(call: _Call) -> Found:
    """Vectors divided by their lengths, with a least length that only zeros fall below."""
    config, last = call.config, len(call.shape()) - 1
    epsilon = config["epsilon"] or 0.0
    if config["axis"] not in (-1, last) or config["order"] != 2 or epsilon > _LEAST_LENGTH:
        return None
    return call.one(_layers.UnitNormalization, axis=-1)


# What only moves numbers, and what reduces images.


def _over_pixels(layer: type[Layer], layer_1d: type[Layer]) -> Any:
    def read(call: _Call) -> Found:
        axes, rank = call.config["axis"], len(call.shape())
        axes = [axes] if isinstance(axes, int) else list(axes or ())
        axes = sorted(axis % rank for axis in axes)
        kind = {(1, 2): layer, (1,): layer_1d}.get(tuple(axes))
        if kind is None or rank != len(axes) + 2:
            return None
        return call.one(kind, keepdims=bool(call.config["keepdims"]))

    return read


def _concatenate(call: _Call) -> Found:
    layer = _layers.Concatenate(axis=call.config["axis"], name=call.name)
    return layer, (list(call.args[0]),)


def _reshape(call: _Call) -> Found:
    return _to_shape(call, call.config["newshape"])


def _to_shape(call: _Call, shape: Sequence[int]) -> Found:
    """A reshape that leaves the batch as it is."""
    before = call.shape()[1:]
    target = [-1 if size is None else int(size) for size in shape[1:]]
    if None not in before and -1 in target:
        rest = math.prod(before) // max(1, -math.prod(target))
        target = [rest if size == -1 else size for size in target]
    if None in before or math.prod(target) != math.prod(before) or shape[0] not in (-1, None):
        return None
    return call.one(_layers.Reshape, target_shape=tuple(target))


def _expand_dims(call: _Call) -> Found:
    axis, shape = call.config["axis"], list(call.shape())
    axes = [axis] if isinstance(axis, int) else list(axis)
    for place in sorted(place % (len(shape) + len(axes)) for place in axes):
        shape.insert(place, 1)
    return _to_shape(call, shape) if shape[0] is None else None


def _squeeze(call: _Call) -> Found:
    axis, shape = call.config["axis"], call.shape()
    axes = [axis] if isinstance(axis, int) else axis
    if axes is None:
        axes = [place for place, size in enumerate(shape) if size == 1]
    gone = {place % len(shape) for place in axes}
    left = [size for place, size in enumerate(shape) if place not in gone]
    return _to_shape(call, left) if 0 not in gone else None


def _transpose(call: _Call) -> Found:
    axes = call.config["axes"]
    axes = tuple(axes) if axes is not None else tuple(reversed(range(len(call.shape()))))
    return call.one(_layers.Permute, dims=axes[1:]) if axes[0] == 0 else None


def _get_item(call: _Call) -> Found:
    key, rank = call.args[1], len(call.shape())
    parts = list(key) if isinstance(key, list | tuple) else [key]
    if any(part is Ellipsis for part in parts):
        place = next(place for place, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (rank - len(parts) + 1)
    parts += [slice(None)] * (rank - len(parts))
    if len(parts) != rank or not all(isinstance(part, slice) for part in parts):
        return None
    batch, *parts = parts
    if batch != slice(None):
        return None
    limits = ([getattr(p, name) for p in parts] for name in ("start", "stop", "step"))
    return Slice(*limits, name=call.name), (call.args[0],)


def _flip(call: _Call) -> Found:
    axis, rank = call.config["axis"], len(call.shape())
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    flipped = {place % rank for place in axes}
    if 0 in flipped:
        return None
    none = [None] * (rank - 1)
    steps = [-1 if place in flipped else None for place in range(1, rank)]
    return Slice(none, none, steps, name=call.name), (call.args[0],)


def _pad(call: _Call) -> Found:
    widths, zeros = call.config["pad_width"], call.args[1:] in ([], [None], [0], [0.0])
    widths = [tuple(sides) for sides in widths]
    if call.config["mode"] != "constant" or not zeros or len(widths) != 4:
        return None
    if widths[0] != (0, 0) or widths[3] != (0, 0):
        return None
    return call.one(_layers.ZeroPadding2D, padding=tuple(widths[1:3]))


def _pool(layer: type[Layer]) -> Any:
    def read(call: _Call) -> Found:
        names = ("pool_size", "strides", "padding", "data_format")
        options = {name: call.config[name] for name in names}
        return call.one(layer, **options) if len(call.shape()) == 4 else None

    return read


def _resize(call: _Call) -> Found:
    """A resize to a whole multiple, as upsampling does it."""
    config, before = call.config, call.shape()[1:3]
    plain = not any(
        config.get(name)
        for name in ("antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    )
    size = tuple(config["size"])
    if None in before or not plain or any(a % b for a, b in zip(size, before, strict=True)):
        return None
    factors = tuple(a // b for a, b in zip(size, before, strict=True))
    kind = config["interpolation"]
    if kind not in ("nearest", "bilinear"):
        return None
    return call.one(_layers.UpSampling2D, size=factors, interpolation=kind)


_READINGS: dict[str, Callable[[_Call], Found]] = {
    "Add": _pair(_layers.Add, _add),
    "AveragePool": _pool(_layers.AveragePooling2D),
    "Celu": _activation("celu", alpha=1.0),
    "Clip": _clip,
    "Concatenate": _concatenate,
    "Divide": _pair(_layers.Layer, _divide),
    "Elu": _elu,
    "Exp": _activation("exponential"),
    "ExpandDims": _expand_dims,
    "Flip": _flip,
    "Gelu": _gelu,
    "GetItem": _get_item,
    "HardSigmoid": _activation("hard_sigmoid"),
    "HardShrink": _activation("hard_shrink", threshold=0.5),
    "HardSilu": _activation("hard_silu"),
    "HardTanh": _activation("hard_tanh"),
    "LeakyRelu": lambda call: call.one(
        _layers.LeakyReLU, negative_slope=call.config["negative_slope"]
    ),
    "LogSigmoid": _activation("log_sigmoid"),
    "Max": _over_pixels(_layers.GlobalMaxPooling2D, _layers.GlobalMaxPooling1D),
    "MaxPool": _pool(_layers.MaxPooling2D),
    "Maximum": _limit(_layers.Maximum),
    "Mean": _over_pixels(_layers.GlobalAveragePooling2D, _layers.GlobalAveragePooling1D),
    "Minimum": _limit(_layers.Minimum),
    "Multiply": _pair(_layers.Multiply, _multiply),
    "Negative": lambda call: call.one(_layers.Rescaling, scale=-1.0),
    "Normalize": _normalize,
    "Pad": _pad,
    "Relu": lambda call: call.one(_layers.ReLU),
    "Relu6": lambda call: call.one(_layers.ReLU, max_value=6.0),
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": _activation("selu"),
    "Sigmoid": _activation("sigmoid"),
    "Silu": _activation("silu"),
    "SoftShrink": _activation("soft_shrink", threshold=0.5),
    "Softmax": lambda call: call.one(_layers.Softmax, axis=call.config["axis"]),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "SparsePlus": _activation("sparse_plus"),
    "SparseSigmoid": _activation("sparse_sigmoid"),
    "Squareplus": _activation("squareplus", b=4),
    "Squeeze": _squeeze,
    "Subtract": _pair(_layers.Subtract, _subtract),
    "Tanh": _activation("tanh"),
    "TanhShrink": _activation("tanh_shrink"),
    "Transpose": _transpose,
    "TrueDivide": _pair(_layers.Layer, _divide),
}

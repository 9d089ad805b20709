"""What each operator of a program becomes in ONNX: one entry each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from repq_tf.arithmetic import tables
from repq_tf.keras_api import Array, ops
from repq_tf.keras_api import Tensor as Values
from repq_tf.onnx.builder import EXACT, INSIDE, OUTSIDE, Builder, to_unsigned
from repq_tf.tflite.program import Operation, Tensor

_INT32 = 6  # `onnx.TensorProto.INT32`


def _values(tensor: Tensor) -> Array:
    """The values of a constant."""
    return np.asarray(tensor.values)


def _simple(kind: str, **options: Any) -> Callable[[Builder, Operation], None]:
    def convert(builder: Builder, operation: Operation) -> None:
        inputs = [builder.real(tensor) for tensor in operation.inputs]
        builder.finish(operation, kind, inputs, **options)

    return convert


def _windows(operation: Operation) -> dict[str, Any]:
    given = operation.options
    same = given["padding"] == "SAME"
    return {
        "auto_pad": "SAME_UPPER" if same else "VALID",
        "strides": [given["strideH"], given["strideW"]],
    }


def _convolution(builder: Builder, operation: Operation) -> None:
    x, kernel, bias = operation.inputs
    values = _values(kernel)
    if operation.kind == "CONV_2D":
        values = values.transpose(0, 3, 1, 2)
    else:  # (1, height, width, filters)
        values = values.transpose(3, 0, 1, 2)
    _convolve(builder, operation, x, kernel, bias, values, **_windows(operation))


def _convolve(
    builder: Builder,
    operation: Operation,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    values: Array,
    **options: Any,
) -> None:
    inputs = [
        builder.real(x),
        builder.weights(kernel, values.astype(np.int8), 0),
        builder.weights(bias, _values(bias).astype(np.int32), 0),
    ]
    options["kernel_shape"] = values.shape[2:]
    builder.finish(operation, "Conv", inputs, group=x.shape[3] // values.shape[1], **options)


def _dense(builder: Builder, operation: Operation) -> None:
    """A matrix; of pixels, a 1x1 convolution."""
    x, kernel, bias = operation.inputs
    values = _values(kernel)
    if len(x.shape) == 4:
        _convolve(builder, operation, x, kernel, bias, values[:, :, None, None])
        return
    if len(x.shape) != 2:
        raise ValueError(
            f"layer {operation.outputs[0].name!r}: in ONNX a dense layer reads vectors or "
            f"images. Received: an input of shape {x.shape}"
        )
    inputs = [
        builder.real(x),
        builder.weights(kernel, values.astype(np.int8), 0),
        builder.weights(bias, _values(bias).astype(np.int32), 0),
    ]
    builder.finish(operation, "Gemm", inputs, transB=1)


def _pool(kind: str) -> Callable[[Builder, Operation], None]:
    def convert(builder: Builder, operation: Operation) -> None:
        given = operation.options
        size = [given["filterHeight"], given["filterWidth"]]
        options = {**_windows(operation), "kernel_shape": size}
        builder.finish(operation, kind, [builder.real(operation.inputs[0])], **options)

    return convert


def _over_pixels(kind: str) -> Callable[[Builder, Operation], None]:
    def convert(builder: Builder, operation: Operation) -> None:
        (output,), x = operation.outputs, builder.real(operation.inputs[0])
        y = builder.node(kind, [x], output.name + EXACT)
        if not operation.options["keepDims"]:
            y = builder.node("Flatten", [y], f"{output.name}/flat")
        builder.store(output, y)

    return convert


def _concatenation(builder: Builder, operation: Operation) -> None:
    axis = operation.options["axis"]
    if len(operation.outputs[0].shape) == 4:
        axis = INSIDE.index(axis)
    inputs = [builder.real(tensor) for tensor in operation.inputs]
    builder.finish(operation, "Concat", inputs, axis=axis)


def _padding(builder: Builder, operation: Operation) -> None:
    x, sides = operation.inputs
    pads = _values(sides)[list(INSIDE)].T.reshape(-1).astype(np.int64)
    constant = builder.constant(f"{operation.outputs[0].name}/sides", pads)
    builder.finish(operation, "Pad", [builder.real(x), constant])


def _reshape(builder: Builder, operation: Operation) -> None:
    """A reshape of images as Keras has them, which moves their channels to the end and back."""
    x, (y,) = operation.inputs[0], operation.outputs
    found, pixels = builder.real(x), (1, 2)

    def is_image(tensor: Tensor) -> bool:
        shape = tensor.shape
        return len(shape) == 4 and any(shape[axis] != 1 for axis in pixels)

    if is_image(x):
        found = builder.node("Transpose", [found], f"{y.name}/last", perm=OUTSIDE)
    sizes: Sequence[int] = [-1 if n is None else n for n in y.shape]
    if len(sizes) == 4 and not is_image(y):
        sizes = [sizes[axis] for axis in INSIDE]
    shape = builder.constant(f"{y.name}/shape", np.asarray(sizes, np.int64))
    found = builder.node("Reshape", [found, shape], y.name + EXACT)
    if is_image(y):
        found = builder.node("Transpose", [found], f"{y.name}/first", perm=INSIDE)
    builder.store(y, found)


def _resize(mode: str, place: str) -> Callable[[Builder, Operation], None]:
    def convert(builder: Builder, operation: Operation) -> None:
        x, (y,) = operation.inputs[0], operation.outputs
        ratios = [y.shape[axis] / x.shape[axis] for axis in (1, 2)]
        scales = builder.constant(f"{y.name}/scales", np.asarray([1, 1, *ratios], np.float32))
        options = {"mode": mode, "coordinate_transformation_mode": place}
        options["nearest_mode"] = "floor"
        builder.finish(operation, "Resize", [builder.real(x), "", scales], **options)

    return convert


def _depth_to_space(builder: Builder, operation: Operation) -> None:
    size = operation.options["blockSize"]
    inputs = [builder.real(operation.inputs[0])]
    builder.finish(operation, "DepthToSpace", inputs, blocksize=size, mode="DCR")


def _leaky_relu(builder: Builder, operation: Operation) -> None:
    inputs = [builder.real(operation.inputs[0])]
    builder.finish(operation, "LeakyRelu", inputs, alpha=operation.options["alpha"])


def _softmax(builder: Builder, operation: Operation) -> None:
    (x,) = operation.inputs
    builder.finish(operation, "Softmax", [builder.real(x)], axis=1)


def _unit(builder: Builder, operation: Operation) -> None:
    (x,) = operation.inputs
    axis = _inside(x, len(x.shape) - 1)
    builder.finish(operation, "LpNormalization", [builder.real(x)], axis=axis, p=2)


def _clamp(builder: Builder, operation: Operation) -> None:
    """A ReLU, or ReLU6, that stands alone."""
    (x,), (y,) = operation.inputs, operation.outputs
    found = builder.node("Relu", [builder.real(x)], y.name + EXACT)
    builder.store(y, found, operation.kind)


def _part(builder: Builder, operation: Operation) -> None:
    """The positive or the negative part, which a zero point at an end of the levels makes."""
    (x,), (y,) = operation.inputs, operation.outputs
    zero = builder.constant("zero", np.float32(0))
    kind = "Max" if y.grid is not None and y.grid.zero_point < 0 else "Min"
    builder.store(y, builder.node(kind, [builder.real(x), zero], y.name + EXACT))


def _extreme(kind: str) -> Callable[[Builder, Operation], None]:
    """The larger or the smaller of levels on one grid."""

    def convert(builder: Builder, operation: Operation) -> None:
        levels = [builder.levels(tensor) for tensor in operation.inputs]
        builder.move(operation.outputs[0], kind, levels)

    return convert


def _inside(x: Tensor, axis: int) -> int:
    """Where an axis of a tensor of Keras is in ONNX."""
    return OUTSIDE[axis] if len(x.shape) == 4 else axis


def _transpose(builder: Builder, operation: Operation) -> None:
    x, order = operation.inputs[0], _values(operation.inputs[1]).tolist()
    if len(order) == 4:
        order = [OUTSIDE[order[axis]] for axis in INSIDE]
    builder.finish(operation, "Transpose", [builder.real(x)], perm=order)


def _slice(builder: Builder, operation: Operation) -> None:
    x, *bounds = operation.inputs
    begins, ends, steps = (_values(tensor).astype(np.int64) for tensor in bounds)
    (y,), far, axes = operation.outputs, np.iinfo(np.int64).max, np.arange(len(x.shape))
    masks = (operation.options[f"{end}Mask"] >> axes & 1 for end in ("begin", "end"))
    open_begin, open_end = masks
    begins = np.where(open_begin, np.where(steps < 0, far, 0), begins)
    ends = np.where(open_end, np.where(steps < 0, -far, far), ends)
    places = np.asarray([_inside(x, axis) for axis in range(len(x.shape))])
    given = {"starts": begins, "ends": ends, "axes": places, "steps": steps}
    constants = [builder.constant(f"{y.name}/{k}", v[1:]) for k, v in given.items()]
    builder.finish(operation, "Slice", [builder.real(x), *constants])


# Functions of single values: tables, which are exact in every engine.


def _function(
    levels_of: Callable[[Values, Values, int], Values],
) -> Callable[[Builder, Operation], None]:
    def convert(builder: Builder, operation: Operation) -> None:
        (x,), (y,) = operation.inputs, operation.outputs
        target, low, high = builder.bounds(y)
        assert x.grid and y.grid and target.grid  # they are stored
        step_in, step = (ops.convert_to_tensor(np.float32(g.scale)) for g in (x.grid, y.grid))
        levels = ops.convert_to_numpy(levels_of(step_in, step, y.grid.zero_point))
        levels = levels + target.grid.zero_point
        places = np.clip(np.arange(-128, 128) - x.grid.zero_point, -128, 255) + 128
        table = to_unsigned(np.clip(levels, low, high)[places])
        _look_up(builder, y, table, _index(builder, x, y))

    return convert


def _look_up(builder: Builder, y: Tensor, table: Array, index: str) -> None:
    constant = builder.constant(f"{y.name}/table", table)
    builder.move(y, "Gather", [constant, index])


def _index(builder: Builder, x: Tensor, y: Tensor) -> str:
    """The places of levels in a table of all: the levels, of which none is negative."""
    return builder.node("Cast", [builder.levels(x)], f"{y.name}/index", to=_INT32)


def _cast(builder: Builder, operation: Operation) -> None:
    (x,), (y,) = operation.inputs, operation.outputs
    builder.count(y, _index(builder, x, y))


def _add(builder: Builder, operation: Operation) -> None:
    (y,) = operation.outputs
    if y.type == "int32":  # int8 levels made places in a table, as uint8 levels are
        builder.count(y, builder.counted(operation.inputs[0]))
    else:
        _simple("Add")(builder, operation)


def _gather(builder: Builder, operation: Operation) -> None:
    table, index = operation.inputs
    (y,) = operation.outputs
    target, low, high = builder.bounds(y)
    assert table.grid is not None and target.grid is not None  # they are stored
    moved = _values(table).astype(int) + (target.grid.zero_point - table.grid.zero_point)
    _look_up(builder, y, to_unsigned(np.clip(moved, low, high)), builder.counted(index))


OPERATORS: dict[str, Callable[[Builder, Operation], None]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "CAST": _cast,
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "DEPTH_TO_SPACE": _depth_to_space,
    "ELU": _function(tables.elu),
    "FULLY_CONNECTED": _dense,
    "GATHER": _gather,
    "GELU": _function(lambda step_in, step, _: tables.gelu(step_in, step)),
    "L2_NORMALIZATION": _unit,
    "LEAKY_RELU": _leaky_relu,
    "LOGISTIC": _simple("Sigmoid"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "MAXIMUM": _extreme("Max"),
    "MEAN": _over_pixels("GlobalAveragePool"),
    "MINIMUM": _extreme("Min"),
    "MUL": _simple("Mul"),
    "PAD": _padding,
    "QUANTIZE": _part,
    "REDUCE_MAX": _over_pixels("GlobalMaxPool"),
    "RELU": _clamp,
    "RELU6": _clamp,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize("linear", "half_pixel"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("nearest", "asymmetric"),
    "SOFTMAX": _softmax,
    "STRIDED_SLICE": _slice,
    "SUB": _simple("Sub"),
    "TANH": _function(lambda step_in, *_: tables.tanh(step_in)),
    "TRANSPOSE": _transpose,
}

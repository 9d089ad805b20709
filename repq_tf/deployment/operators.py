"""What each layer of a quantized model becomes in a file: one entry each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.arithmetic import container_top
from repq_tf.deployment.convolutions import (
    convolution,
    dense,
    fused_activation,
    pad,
    reshape,
    scale_channels,
    strides,
)
from repq_tf.deployment.lowering import Lower, Lowering, Make
from repq_tf.graphs import Node
from repq_tf.keras_api import Shape, keras, ops
from repq_tf.layers import (
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
    QuantizedUpSampling2D,
    ReparamConv,
    Slice,
)
from repq_tf.layers.stock import TRAINING_ONLY
from repq_tf.quantization.grids import known_name
from repq_tf.quantization.operators import activation_name
from repq_tf.tflite.program import Grid, Tensor, whole
from repq_tf.windows import VALID, convolved_size

_layers = keras.layers
_PIXELS = (1, 2)  # the axes of height and width


def _simple(kind: str, **options: Any) -> Lower:
    """An operator on one tensor that keeps its shape."""

    def lower(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
        return _making(lowering, kind, tensors, tensors[0].shape, **options)

    return lower


def _making(
    lowering: Lowering, kind: str, inputs: Sequence[Tensor], shape: Shape, **options: Any
) -> Make:
    def make(grid: Grid, name: str) -> Tensor:
        y = lowering.tensor(name, shape, grid)
        return lowering.program.add(kind, tuple(inputs), y, **options)

    return make


def _pair(kind: str) -> Lower:
    """An operator on two tensors, whose shapes are broadcast."""

    def lower(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
        shape = node.layer.values_shape(*(tensor.shape for tensor in tensors))
        options = {"fusedActivationFunction": fused_activation(node.layer)}
        return _making(lowering, kind, tensors, shape, **options)

    return lower


def _mean(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    axes = lowering.program.constant("axes", whole(_PIXELS))
    (x,) = tensors
    shape = node.layer.values_shape(x.shape)
    return _making(lowering, "MEAN", (x, axes), shape, keepDims=node.layer.keepdims)


def _rescale(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """An operator's output on the grid that several tensors share.

    The runtime's QUANTIZE multiplies with eight bits of precision; a convolution with the
    weight 1 rounds as the model does.
    """
    x, ones = tensors[0], np.ones(tensors[0].shape[-1], np.float32)

    def make(grid: Grid, name: str) -> Tensor:
        return scale_channels(lowering, x, lowering.tensor(name, x.shape, grid), ones, ones)

    return make


def _prelu(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
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
    return _making(lowering, "ADD", (positive, scaled), x.shape, **options)


def _hard_sigmoid(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
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
    return _making(lowering, "MUL", (shifted, factor), x.shape, **options)


def _lookup(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """An operator of the runtime that makes the table, or the table itself; see the layer."""
    layer, (x,), program = node.layer, tensors, lowering.program
    elu = isinstance(layer.function, _layers.ELU)
    name = "elu" if elu else activation_name(layer.function)
    if name == "gelu":
        return _making(lowering, "GELU", tensors, x.shape, approximate=False)
    if name == "elu" and (not elu or layer.function.alpha == 1):
        return _making(lowering, "ELU", tensors, x.shape)
    assert x.grid is not None  # it is stored
    step = ops.convert_to_tensor(np.float32(x.grid.scale))
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
    return _making(lowering, "LEAKY_RELU", tensors, tensors[0].shape, alpha=alpha)


def _activation(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make | Tensor:
    name = activation_name(node.layer)
    if name == "linear":
        return tensors[0]
    return _making(lowering, name.upper(), tensors, tensors[0].shape)


def _pooling(kind: str) -> Lower:
    def lower(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
        pool, (x,) = node.layer, tensors
        spatial, steps = x.shape[1:3], pool.strides or pool.pool_size
        if pool.padding == "same":
            size = tuple(n and -(-n // s) for n, s in zip(spatial, steps, strict=True))
        else:
            size = convolved_size(spatial, VALID, pool.pool_size, steps)
        height, width = map(int, pool.pool_size)
        options: dict[str, Any] = {"filterHeight": height, "filterWidth": width}
        options |= strides(steps)
        options |= {"padding": pool.padding.upper(), "fusedActivationFunction": "NONE"}
        return _making(lowering, kind, tensors, (None, *size, x.shape[3]), **options)

    return lower


def _up_sampling(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    layer, (x,), program = node.layer, tensors, lowering.program
    (height, width), (rows, columns) = x.shape[1:3], layer.size
    bilinear = layer.interpolation == "bilinear"
    if None not in (height, width):
        size = (height * rows, width * columns)
        kind = "RESIZE_BILINEAR" if bilinear else "RESIZE_NEAREST_NEIGHBOR"
        inputs = (x, program.constant("size", whole(size)))
        shape = (None, *size, x.shape[3])
        return _making(lowering, kind, inputs, shape, halfPixelCenters=bilinear)
    if not bilinear and rows == columns:
        # A resize to a computed size would be left to the runtime's slow kernels.
        shape = (*x.shape[:3], x.shape[3] * rows**2)
        many = lowering.inner(f"{node.name}/copies", shape, x.grid)
        program.add("CONCATENATION", (x,) * rows**2, many, axis=3)
        return _depth_to_space(lowering, many, rows)
    raise ValueError(
        f"layer {known_name(lowering.graph, node)!r}: of images of any size a file can hold "
        f"only interpolation='nearest' by one factor; give input_shape. Received: "
        f"interpolation={layer.interpolation!r}, size={layer.size}"
    )


def _pixel_shuffle(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    (x,), size = tensors, node.layer.block_size
    if x.type != "int16":
        return _depth_to_space(lowering, x, size)
    # int16, of which the runtime has no kernel: by way of the batch.
    program, planes = lowering.program, (*x.shape[:3], x.shape[3] // size**2)
    parts = [lowering.inner(f"{node.name}/part", planes, x.grid) for _ in range(size**2)]
    axis = program.constant("axis", whole(3))
    program.add("SPLIT", (axis, x), *parts, numSplits=len(parts))
    batch = lowering.inner(f"{node.name}/planes", planes, x.grid)
    program.add("CONCATENATION", tuple(parts), batch, axis=0)
    block = program.constant("block", whole((size, size)))
    crops = program.constant("crops", whole(((0, 0), (0, 0))))
    shape = (None, *_enlarged(x.shape[1:3], size), planes[3])
    return _making(lowering, "BATCH_TO_SPACE_ND", (batch, block, crops), shape)


def _depth_to_space(lowering: Lowering, x: Tensor, size: int) -> Make:
    shape = (None, *_enlarged(x.shape[1:3], size), x.shape[3] // size**2)
    return _making(lowering, "DEPTH_TO_SPACE", (x,), shape, blockSize=size)


def _enlarged(spatial: Shape, size: int) -> list[int | None]:
    return [None if n is None else n * size for n in spatial]


# That only move numbers.


def _concatenation(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    axis = node.layer.axis % len(tensors[0].shape)
    shape = list(tensors[0].shape)
    sizes = [tensor.shape[axis] for tensor in tensors]
    shape[axis] = None if None in sizes else sum(sizes)
    options = {"axis": axis, "fusedActivationFunction": "NONE"}
    return _making(lowering, "CONCATENATION", tensors, tuple(shape), **options)


def _reshape(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Tensor:
    (x,) = tensors
    shape = node.layer.compute_output_shape(x.shape)[1:]
    if None in shape:
        raise ValueError(
            f"layer {known_name(lowering.graph, node)!r} makes {shape} of images of any "
            "size, which a file cannot; give input_shape"
        )
    return reshape(lowering, x, (None, *shape), node.name)


def _extreme(kind: str) -> Lower:
    """The larger or the smaller of several tensors, two at a time."""

    def lower(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
        first, *middle, last = tensors
        for x in middle:
            y = lowering.inner(f"{node.name}/{kind.lower()}", _broadcast(first, x), x.grid)
            first = lowering.program.add(kind, (first, x), y)
        return _making(lowering, kind, (first, last), _broadcast(first, last))

    return lower


def _broadcast(a: Tensor, b: Tensor) -> Shape:
    return tuple(
        n if m in (1, None) and n != 1 else m for m, n in zip(a.shape, b.shape, strict=True)
    )


def _largest(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    axes, (x,) = lowering.program.constant("axes", whole(_PIXELS)), tensors
    ones = (1, 1) if node.layer.keepdims else ()
    shape = (None, *ones, x.shape[3])
    keep = node.layer.keepdims
    return _making(lowering, "REDUCE_MAX", (x, axes), shape, keepDims=keep)


def _padding(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Tensor:
    return pad(lowering, tensors[0], node.layer.padding, node.name)


def _cropping(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    (x,), sides = tensors, node.layer.cropping
    parts = [slice(first, -last or None) for first, last in sides]
    return _strided(lowering, x, (*parts, slice(None)))


def _slice(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    return _strided(lowering, tensors[0], node.layer.slices)


def _strided(lowering: Lowering, x: Tensor, parts: Sequence[slice]) -> Make:
    """A STRIDED_SLICE; the ends that a slice leaves open are those of any size."""
    begin, end, strides, shape = [0], [0], [1], [x.shape[0]]
    begins, ends = 1, 1  # bits, of the axes whose ends are open: the batch's
    for axis, (part, size) in enumerate(zip(parts, x.shape[1:], strict=True), 1):
        begin.append(part.start or 0)
        end.append(part.stop or 0)
        strides.append(part.step or 1)
        begins |= (part.start is None) << axis
        ends |= (part.stop is None) << axis
        shape.append(None if size is None else len(range(*part.indices(size))))
    limits = [lowering.program.constant("limits", whole(v)) for v in (begin, end, strides)]
    options = {"beginMask": begins, "endMask": ends}
    return _making(lowering, "STRIDED_SLICE", (x, *limits), tuple(shape), **options)


def _permute(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    (x,), axes = tensors, (0, *node.layer.dims)
    order = lowering.program.constant("order", whole(axes))
    shape = tuple(x.shape[axis] for axis in axes)
    return _making(lowering, "TRANSPOSE", (x, order), shape)


def _nothing(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


LOWERINGS: dict[type, Lower] = {
    **dict.fromkeys(TRAINING_ONLY, _nothing),
    DenseBlock: dense,
    DepthToSpace: _pixel_shuffle,
    Quantize: _rescale,
    QuantizedAdd: _pair("ADD"),
    QuantizedAveragePooling2D: _pooling("AVERAGE_POOL_2D"),
    QuantizedHardSigmoid: _hard_sigmoid,
    QuantizedLeakyReLU: _leaky_relu,
    QuantizedLookup: _lookup,
    QuantizedMean: _mean,
    QuantizedMultiply: _pair("MUL"),
    QuantizedPReLU: _prelu,
    QuantizedSigmoid: _simple("LOGISTIC"),
    QuantizedSoftmax: _simple("SOFTMAX", beta=1.0),
    QuantizedSubtract: _pair("SUB"),
    QuantizedTanh: _simple("TANH"),
    QuantizedUpSampling2D: _up_sampling,
    ReparamConv: convolution,
    Slice: _slice,
    _layers.Activation: _activation,
    _layers.Concatenate: _concatenation,
    _layers.Cropping2D: _cropping,
    _layers.Flatten: _reshape,
    _layers.GlobalAveragePooling2D: _reshape,  # of one pixel; others are quantized layers
    _layers.GlobalMaxPooling2D: _largest,
    _layers.MaxPooling2D: _pooling("MAX_POOL_2D"),
    _layers.Maximum: _extreme("MAXIMUM"),
    _layers.Minimum: _extreme("MINIMUM"),
    _layers.Permute: _permute,
    _layers.ReLU: _activation,
    _layers.Reshape: _reshape,
    _layers.ZeroPadding2D: _padding,
}

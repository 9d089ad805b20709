"""Layers whose operators are the same in integer and in float files."""

from collections.abc import Sequence
from typing import Any

from repq_tf.deployment.convolutions import pad, reshape, strides
from repq_tf.deployment.lowering import Lower, Lowering, Make
from repq_tf.graphs import Node
from repq_tf.keras_api import Shape
from repq_tf.quantization.grids import known_name
from repq_tf.tflite.program import Grid, Tensor, whole
from repq_tf.windows import VALID, convolved_size

PIXELS = (1, 2)  # the axes of height and width


def simple(kind: str, **options: Any) -> Lower:
    """An operator on one tensor that keeps its shape."""

    def lower(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
        return making(lowering, kind, tensors, tensors[0].shape, **options)

    return lower


def making(
    lowering: Lowering, kind: str, inputs: Sequence[Tensor], shape: Shape, **options: Any
) -> Make:
    """An operator that makes a tensor of a shape of some others."""

    def make(grid: Grid | None, name: str) -> Tensor:
        y = lowering.tensor(name, shape, grid)
        return lowering.program.add_once(kind, tuple(inputs), y, **options)

    return make


def pooling(kind: str) -> Lower:
    """An operator on the pixels of each pool."""

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
        return making(lowering, kind, tensors, (None, *size, x.shape[3]), **options)

    return lower


def up_sampling(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """Upsampling: nearest or bilinear, to a multiple of the size."""
    layer, (x,), program = node.layer, tensors, lowering.program
    (height, width), (rows, columns) = x.shape[1:3], layer.size
    bilinear = layer.interpolation == "bilinear"
    if None not in (height, width):
        size = (height * rows, width * columns)
        kind = "RESIZE_BILINEAR" if bilinear else "RESIZE_NEAREST_NEIGHBOR"
        inputs = (x, program.constant("size", whole(size)))
        shape = (None, *size, x.shape[3])
        return making(lowering, kind, inputs, shape, halfPixelCenters=bilinear)
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


def pixel_shuffle(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """Depth to space."""
    return depth_to_space(lowering, tensors[0], node.layer.block_size, node.name)


def depth_to_space(lowering: Lowering, x: Tensor, size: int, name: str) -> Make:
    """A tensor with squares of `size` pixels made of the channels of each pixel.

    Args:
        lowering: the `Lowering`.
        x: the tensor.
        size: the height and width of a square.
        name: what tensors between are called after.
    """
    if x.type != "int16":
        return _depth_to_space(lowering, x, size)
    # int16, of which the runtime has no kernel: by way of the batch.
    program, planes = lowering.program, (*x.shape[:3], x.shape[3] // size**2)
    parts = [lowering.inner(f"{name}/part", planes, x.grid) for _ in range(size**2)]
    axis = program.constant("axis", whole(3))
    program.add("SPLIT", (axis, x), *parts, numSplits=len(parts))
    batch = lowering.inner(f"{name}/planes", planes, x.grid)
    program.add("CONCATENATION", tuple(parts), batch, axis=0)
    block = program.constant("block", whole((size, size)))
    crops = program.constant("crops", whole(((0, 0), (0, 0))))
    shape = (None, *_enlarged(x.shape[1:3], size), planes[3])
    return making(lowering, "BATCH_TO_SPACE_ND", (batch, block, crops), shape)


def _depth_to_space(lowering: Lowering, x: Tensor, size: int) -> Make:
    shape = (None, *_enlarged(x.shape[1:3], size), x.shape[3] // size**2)
    return making(lowering, "DEPTH_TO_SPACE", (x,), shape, blockSize=size)


def _enlarged(spatial: Shape, size: int) -> list[int | None]:
    return [None if n is None else n * size for n in spatial]


def concatenation(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A concatenation along any axis."""
    axis = node.layer.axis % len(tensors[0].shape)
    shape = list(tensors[0].shape)
    sizes = [tensor.shape[axis] for tensor in tensors]
    shape[axis] = None if None in sizes else sum(sizes)
    options = {"axis": axis, "fusedActivationFunction": "NONE"}
    return making(lowering, "CONCATENATION", tensors, tuple(shape), **options)


def reshaping(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Tensor:
    """A reshape to what the layer makes of its input's shape."""
    (x,) = tensors
    shape = node.layer.compute_output_shape(x.shape)[1:]
    if None in shape:
        raise ValueError(
            f"layer {known_name(lowering.graph, node)!r} makes {shape} of images of any "
            "size, which a file cannot; give input_shape"
        )
    return reshape(lowering, x, (None, *shape), node.name)


def largest(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """The largest value of each channel."""
    axes, (x,) = lowering.program.constant("axes", whole(PIXELS)), tensors
    ones = (1, 1) if node.layer.keepdims else ()
    shape = (None, *ones, x.shape[3])
    keep = node.layer.keepdims
    return making(lowering, "REDUCE_MAX", (x, axes), shape, keepDims=keep)


def padding(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Tensor:
    """Zeros beside the image."""
    return pad(lowering, tensors[0], node.layer.padding, node.name)


def nothing(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Tensor:
    """What inference leaves as it is."""
    return tensors[0]


def cropping(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """The middle of an image."""
    sides = node.layer.cropping
    pixels = (slice(before, -after or None) for before, after in sides)
    return _cut(lowering, node, tensors[0], (*pixels, slice(None)))


def slicing(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A part of each axis."""
    return _cut(lowering, node, tensors[0], node.layer.slices)


def _cut(lowering: Lowering, node: Node, x: Tensor, slices: Sequence[slice]) -> Make:
    shape = (x.shape[0], *node.layer.compute_output_shape(x.shape)[1:])
    return cut(lowering, x, slices, shape)


def cut(lowering: Lowering, x: Tensor, slices: Sequence[slice], shape: Shape) -> Make:
    """Slices of all axes but the batch's, which make a tensor of some shape."""
    program, parts = lowering.program, (slice(None), *slices)
    begins, ends = ([getattr(part, side) for part in parts] for side in ("start", "stop"))
    masks = (
        sum(1 << axis for axis, value in enumerate(values) if value is None)
        for values in (begins, ends)
    )
    steps = [part.step or 1 for part in parts]
    bounds = (
        program.constant("bounds", whole([value or 0 for value in values]))
        for values in (begins, ends, steps)
    )
    options = dict(zip(("beginMask", "endMask"), masks, strict=True))
    return making(lowering, "STRIDED_SLICE", (x, *bounds), shape, **options)


def permuting(lowering: Lowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """Another order of an image's axes."""
    return transpose(lowering, tensors[0], (0, *node.layer.dims))


def transpose(lowering: Lowering, x: Tensor, order: Sequence[int]) -> Make:
    """A tensor with its axes in another order."""
    constant = lowering.program.constant("order", whole(order))
    shape = tuple(x.shape[axis] for axis in order)
    return making(lowering, "TRANSPOSE", (x, constant), shape)

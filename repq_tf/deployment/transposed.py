"""Transposed convolutions of a quantized model, as operators of a file."""

from collections.abc import Sequence

from repq_tf.deployment.convolutions import (
    fused_activation,
    pad,
    strides,
    weighted,
    weights_of,
)
from repq_tf.deployment.lowering import IntegerLowering, Make
from repq_tf.deployment.moves import cut, depth_to_space
from repq_tf.graphs import Node
from repq_tf.quantization.grids import known_name
from repq_tf.tflite.program import Grid, Tensor
from repq_tf.windows import VALID, convolved_size, same_window


def transposed(lowering: IntegerLowering, node: Node, tensors: Sequence[Tensor]) -> Make:
    """A transposed convolution: one convolution for all phases, and a DEPTH_TO_SPACE.

    As exact as the runtime's TRANSPOSE_CONV, as fast or up to six times as fast, and for
    batches and images of any size, which that operator does not take.
    """
    block, x, program = node.layer, tensors[0], lowering.program
    weights, _ = weights_of(lowering, node)
    phases, (_, window) = block.stored_weights(*weights), block.phases(weights[0])
    count, packed = block.upsampling, node.name in lowering.packed
    size = convolved_size(x.shape[1:3], window, phases[0].shape[:2], (1, 1))
    padding = "VALID"
    if window != VALID and window == same_window(phases[0].shape[:2], (1, 1), x.shape[1:3]):
        padding = "SAME"
    elif window != VALID:
        x = pad(lowering, x, window, f"{known_name(lowering.graph, node)}/pad")
    options = {"padding": padding, **strides((1, 1))}
    options |= {"dilationHFactor": 1, "dilationWFactor": 1}
    options |= {"fusedActivationFunction": fused_activation(block)}

    def make(grid: Grid, name: str) -> Tensor:
        if count == 1:
            y = lowering.tensor(name, (None, *size, block.filters), grid)
            return weighted(lowering, "CONV_2D", x, y, phases, packed, **options)
        y = lowering.inner(f"{name}/phases", (None, *size, block.filters * count**2), grid)
        y = weighted(lowering, "CONV_2D", x, y, phases, packed, **options)
        made = depth_to_space(lowering, y, count, name)
        if not any(block.cut):
            return made(grid, name)
        y = made(grid, program.name(f"{name}/joined"))
        rows, columns = (slice(None, -cut or None) for cut in block.cut)
        shape = (None, *(n and n - c for n, c in zip(y.shape[1:3], block.cut, strict=True)))
        shape = (*shape, block.filters)
        return cut(lowering, y, (rows, columns, slice(None)), shape)(grid, name)

    return make

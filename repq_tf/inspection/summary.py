"""`summary`: bits, parameters, multiplications, bytes and steps of a model, layer by layer."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence

from repq_tf.branches import NumpyReading
from repq_tf.graphs import Graph, Node, read_native
from repq_tf.inspection.costs import deployed_parameters, linear_maps, stored_bytes
from repq_tf.inspection.files import summary_of_file
from repq_tf.inspection.layer_summary import LayerSummary, Summary
from repq_tf.inspection.shapes import output_shapes
from repq_tf.keras_api import Layer, keras, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.quantization.containers import check_container, four_bit_layers
from repq_tf.quantization.grids import (
    input_quantizer,
    known_name,
    output_quantizer,
    own_quantizer,
)
from repq_tf.quantization.weights import bits_of_a_weight, entropy_of_weights
from repq_tf.quantizers import LSQ


def summary(
    model: keras.Model | str | os.PathLike[str],
    input_shape: Sequence[int] | None = None,
    container: str = "int8",
) -> Summary:
    """Says what a model is made of and what it costs.

    A block counts as the one convolution that it is merged into: `kernel height * kernel width
    * input channels / groups * filters` weights, applied once for each output pixel.
    Multiplications (MACs) are those of convolutions and dense layers; sums, poolings
    and activations have none. Bit-operations are `MACs * weight bits * input bits`,
    32 bits for floating point.

    Args:
        model: a Functional or Sequential Keras model: float, quantized, or merged. Or the path
            of a `.tflite` or `.onnx` file; its rows are its operators, their bits those that
            the file stores, and the other arguments are of no effect.
        input_shape: `(height, width, channels)`, for a model that takes images of any size.
        container: of the file's kernels, as for `export_tflite`; "int4" stores those of at
            most 4 bits two a byte.

    Returns:
        A `Summary`: print it, or `save("model.html")`.

    Raises:
        ValueError: the input's size is unknown, `input_shape` does not fit the model, or the
            file is none of the two kinds.

    Example:
        >>> summary = repq_tf.summary(repq_tf.models.resnet18())
        >>> summary.totals["macs"]
        1814073344
        >>> summary.save("resnet18.html")
    """
    check_container(container)
    if isinstance(model, str | os.PathLike):
        return summary_of_file(model)
    graph = read_native(model)
    packed = four_bit_layers(graph)[0] if container == "int4" else ()
    shapes = output_shapes(graph, input_shape)
    counted: set[int] = set()
    rows = []
    for node in graph.nodes.values():
        if type(node.layer) is not Quantize:
            rows.append(_row(graph, node, shapes, counted, node.name in packed))
    return Summary(model.name, tuple(rows))


def _row(
    graph: Graph,
    node: Node,
    shapes: Mapping[str, tuple[int, ...]],
    counted: set[int],
    packed: bool,
) -> LayerSummary:
    layer, shape = node.layer, shapes[node.name]
    source = shapes[node.inputs[0].node] if node.inputs else shape
    output, reads = output_quantizer(graph, node), _input_quantizer(graph, node)
    maps = linear_maps(layer, source[-1], shape)
    bits = getattr(layer, "weight_bits", None)
    again = id(layer) in counted  # a layer that is called twice has its weights once
    return LayerSummary(
        name=known_name(graph, node),
        kind=type(layer).__name__,
        shape=shape,
        weight_bits=bits,
        **_levels(layer),
        input_bits=reads and reads.bits,
        output_bits=output and output.bits,
        trained=_trained((layer, own_quantizer(graph, node)), counted),
        deployed=0 if again else deployed_parameters(layer, maps),
        macs=None if maps is None else sum(each.macs for each in maps),
        size=0 if again else stored_bytes(layer, maps, bits, packed),
        weight_steps=_steps(getattr(layer, "weight_quantizer", None)),
        output_step=output and float(output.step),
    )


def _input_quantizer(graph: Graph, node: Node) -> Quantize | None:
    """The `Quantize` layer on whose grid a node's first input lies, or None."""
    if not node.inputs:
        return None
    if isinstance(node.layer, ReparamConv):  # quantized only if it is given the step
        return input_quantizer(graph, node)
    return output_quantizer(graph, graph.nodes[node.inputs[0].node])


def _trained(layers: Iterable[Layer | None], counted: set[int]) -> int:
    """The trainable parameters of layers that have not been counted."""
    total = 0
    for layer in layers:
        if layer is not None and id(layer) not in counted:
            counted.add(id(layer))
            total += sum(math.prod(variable.shape) for variable in layer.trainable_variables)
    return total


def _levels(layer: Layer) -> dict[str, float | None]:
    """What a layer's quantized weights would take, compressed."""
    if getattr(layer, "weight_quantizer", None) is None:
        return {"bits_a_weight": None, "weight_entropy": None}
    kernel = layer.inner.merge(NumpyReading()).kernel
    return {
        "bits_a_weight": bits_of_a_weight(layer, kernel),
        "weight_entropy": entropy_of_weights(layer, kernel),
    }


def _steps(quantizer: LSQ | None) -> tuple[float, float] | None:
    """The smallest and the largest step of an `LSQ`, or None without one."""
    if quantizer is None:
        return None
    steps = ops.convert_to_numpy(quantizer.step)
    return float(steps.min()), float(steps.max())

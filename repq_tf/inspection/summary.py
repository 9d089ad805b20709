"""`summary`: bits, parameters, multiplications, bytes and steps of a model, layer by layer."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from repq_tf.branches import NumpyReading
from repq_tf.files import new_file, write_atomically
from repq_tf.graphs import Graph, Node, read_native
from repq_tf.inspection.costs import (
    FLOAT_BITS,
    deployed_parameters,
    linear_maps,
    stored_bytes,
)
from repq_tf.inspection.render import as_html, as_text
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


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer of a `Summary`.

    Attributes:
        name: the layer.
        kind: its class.
        shape: of its output, without the batch.
        weight_bits: of its kernel; None in floating point or without one.
        bits_a_weight: the mean bits of its kernel's weights, those of wide taps and codebooks
            among them; or None.
        weight_entropy: the entropy of its kernel's levels in bits, the mean of its channels if
            these have steps of their own; or None.
        input_bits: of what it reads; None in floating point.
        output_bits: of what it makes; None in floating point.
        trained: trainable parameters, those of its branches and steps among them.
        deployed: parameters of the merged network.
        macs: multiply-accumulates of one image, deployed; None for a layer that is not known.
        size: bytes of the deployed parameters.
        weight_steps: `(smallest, largest)` step of its kernel, or None.
        output_step: the step of its output, or None.
    """

    name: str
    kind: str
    shape: tuple
    weight_bits: int | None
    bits_a_weight: float | None
    weight_entropy: float | None
    input_bits: int | None
    output_bits: int | None
    trained: int
    deployed: int
    macs: int | None
    size: int
    weight_steps: tuple | None
    output_step: float | None

    @property
    def bit_operations(self) -> int | None:
        """`macs * weight bits * input bits`, 32 for what is in floating point."""
        bits = (self.weight_bits or FLOAT_BITS) * (self.input_bits or FLOAT_BITS)
        return None if self.macs is None else self.macs * bits


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary` returns; `str(summary)` is the table.

    Attributes:
        name: the model.
        layers: a `LayerSummary` for each layer, in order.
    """

    name: str
    layers: tuple

    @property
    def totals(self) -> dict[str, int]:
        """`{"trained", "deployed", "macs", "bit_operations", "size"}`, sums over the layers."""
        names = ("trained", "deployed", "macs", "bit_operations", "size")
        return {name: sum(getattr(row, name) or 0 for row in self.layers) for name in names}

    @property
    def unknown(self) -> list[str]:
        """Names of the layers whose multiplications are not known and not in the totals."""
        return [row.name for row in self.layers if row.macs is None]

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain data, which JSON can hold."""
        rows = [
            {**dataclasses.asdict(row), "bit_operations": row.bit_operations}
            for row in self.layers
        ]
        return {
            "name": self.name,
            "layers": rows,
            "totals": self.totals,
            "unknown": self.unknown,
        }

    def __str__(self) -> str:
        return as_text(self)

    def html(self) -> str:
        """The table as a page that needs no other file."""
        return as_html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `html()` to a file, whole or not at all."""
        write_atomically(new_file(path), self.html().encode())


def summary(
    model: keras.Model, input_shape: Sequence[int] | None = None, container: str = "int8"
) -> Summary:
    """Says what a model is made of and what it costs.

    A block counts as the one convolution that it is merged into: `kernel height * kernel width
    * input channels / groups * filters` weights, applied once for each output pixel.
    Multiplications (MACs) are those of convolutions and dense layers; sums, poolings
    and activations have none. Bit-operations are `MACs * weight bits * input bits`,
    32 bits for floating point.

    Args:
        model: a Functional or Sequential Keras model: float, quantized, or merged.
        input_shape: `(height, width, channels)`, for a model that takes images of any size.
        container: of the file's kernels, as for `export_tflite`; "int4" stores those of at
            most 4 bits two a byte.

    Returns:
        A `Summary`: print it, or `save("model.html")`.

    Raises:
        ValueError: the input's size is unknown, or `input_shape` does not fit the model.

    Example:
        >>> summary = repq_tf.summary(repq_tf.models.resnet18())
        >>> summary.totals["macs"]
        1814073344
        >>> summary.save("resnet18.html")
    """
    check_container(container)
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

"""On which grid the tensors of a quantized model lie."""

import re

from repq_tf.graphs import Graph, Node
from repq_tf.keras_api import Layer, Tensor, keras
from repq_tf.layers import (
    Quantize,
    QuantizedAveragePooling2D,
    QuantizedLeakyReLU,
    QuantizedUpSampling2D,
    ReparamConv,
)
from repq_tf.layers.stock import MAPS, TRAINING_ONLY

# What stands behind the name of a layer whose own name an output of the model bears.
OPERATOR = "_operator"
# Operators whose results are rounded to the grid of their input.
ON_INPUT_GRID = QuantizedAveragePooling2D | QuantizedLeakyReLU | QuantizedUpSampling2D
_CAPITALS = re.compile("(?<=[a-z])(?=[A-Z])")


def known_name(graph: Graph, node: Node) -> str:
    """The name by which the user of a quantized model knows a node: its float model's.

    Where a convolution and its softmax are the layer `scores`, an output of the model, they
    are `scores` and `scores_softmax`.
    """
    name = node.name.removesuffix(OPERATOR)
    if name not in graph.output_names or name + OPERATOR not in graph.nodes:
        return node.name
    if name != node.name:
        return name
    alone = type(node.layer) is keras.layers.Activation
    linear = alone and node.layer.activation is keras.activations.linear
    if type(node.layer) is Quantize or linear:
        return name
    kind = type(node.layer).__name__.removeprefix("Quantized")
    return f"{name}_{_CAPITALS.sub('_', kind).lower()}"


def input_layers(graph: Graph, source: Node) -> list[Node]:
    """The layers between an input and what is quantized of it, in order.

    They are maps by constants, which prepare images, and layers that act in training only, each
    read by the next alone.

    Args:
        graph: the `Graph` of a model, quantized or not.
        source: an input of the model.
    """
    found, last = [], source
    while not graph.is_output(last.name):
        readers = graph.consumers(last.name)
        if len(readers) != 1 or type(readers[0].layer) not in (*MAPS, *TRAINING_ONLY):
            break
        last = readers[0]
        found.append(last)
    return found


def own_quantizer(graph: Graph, node: Node) -> Quantize | None:
    """The `Quantize` layer that rounds a node's output, itself or behind it; or None.

    Args:
        graph: the `Graph` of a model, quantized or not.
        node: one of its nodes.
    """
    if isinstance(node.layer, Quantize):
        return node.layer
    if node.is_input:
        node = [node, *input_layers(graph, node)][-1]
    readers = [reader.layer for reader in graph.consumers(node.name)]
    return next((layer for layer in readers if type(layer) is Quantize), None)


def output_quantizer(graph: Graph, node: Node) -> Quantize | None:
    """The `Quantize` layer on whose grid a node's output lies, or None.

    Args:
        graph: the `Graph` of a model, quantized or not.
        node: one of its nodes.
    """
    quantizer = own_quantizer(graph, node)
    new_scale = (
        not node.inputs or node.layer.weights or isinstance(node.layer, keras.layers.Add)
    )
    if quantizer is not None or new_scale:
        return quantizer
    return output_quantizer(graph, graph.nodes[node.inputs[0].node])


def input_quantizer(graph: Graph, node: Node) -> Quantize | None:
    """The `Quantize` layer whose step a block is given, or None."""
    if len(node.inputs) < 2:
        return None
    layer = graph.nodes[node.inputs[1].node].layer
    return layer if isinstance(layer, Quantize) else None


def quantized_node(graph: Graph, node: Node) -> Node:
    """The node a `Quantize` rounds: its input, or that of the model which layers prepare.

    It is the node itself if that is an operator, or regrids one.
    """
    if type(node.layer) is not Quantize:
        return node
    before = source = graph.nodes[node.inputs[0].node]
    while type(source.layer) in (*MAPS, *TRAINING_ONLY):
        source = graph.nodes[source.inputs[0].node]
    if source.is_input:
        return source
    return node if isinstance(before.layer, Quantize) else before


def grid_layer(graph: Graph, tensor: Tensor) -> Quantize:
    """The `Quantize` layer on whose grid a tensor lies.

    Raises:
        ValueError: the tensor is not quantized.
    """
    node = graph.nodes[tensor.node]
    while not isinstance(node.layer, Quantize):
        if not node.inputs or isinstance(node.layer, ReparamConv):
            raise ValueError(
                f"layer {tensor.node!r}: its output has no quantizer, so the file would "
                "not be all integer"
            )
        node = graph.nodes[node.inputs[0].node]
    return node.layer


def stays_inside(layer: Layer) -> bool:
    """Whether what a layer computes cannot leave the grid of its input at the lower end."""
    if isinstance(layer, QuantizedLeakyReLU):
        return layer.negative_slope <= 1
    return isinstance(layer, ON_INPUT_GRID | keras.layers.ReLU | keras.layers.Activation)

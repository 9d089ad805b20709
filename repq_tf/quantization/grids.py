"""On which grid the tensors of a quantized model lie."""

import re

from repq_tf.keras_api import keras
from repq_tf.layers import Quantize

# What stands behind the name of a layer whose own name an output of the model bears.
OPERATOR = "_operator"
_CAPITALS = re.compile("(?<=[a-z])(?=[A-Z])")


def known_name(graph, node):
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


def own_quantizer(graph, node):
    """The `Quantize` layer that rounds a node's output, itself or behind it; or None.

    Args:
        graph: the `Graph` of a model, quantized or not.
        node: one of its nodes.
    """
    if isinstance(node.layer, Quantize):
        return node.layer
    readers = [reader.layer for reader in graph.consumers(node.name)]
    return next((layer for layer in readers if type(layer) is Quantize), None)


def output_quantizer(graph, node):
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

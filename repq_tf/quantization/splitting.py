"""Layers that mean several others of Keras's, as several nodes of the graph."""

import dataclasses
from collections.abc import Collection
from typing import Any

from repq_tf.graphs import (
    Graph,
    Node,
    Tensor,
    copy_layer,
    copy_state,
    free_name,
    replace_tensors,
)
from repq_tf.keras_api import Layer, keras

_layers = keras.layers
# Without weights: of others, as activations, Keras makes none.
_ACTIVATIONS = (
    _layers.Activation,
    _layers.ELU,
    _layers.LeakyReLU,
    _layers.ReLU,
    _layers.Softmax,
)


def split_layers(graph: Graph) -> Graph:
    """Returns a graph in which each layer is one of Keras's alone, or of the library's.

    - `Conv2D(8, 3, activation=LeakyReLU())` becomes a convolution and a LeakyReLU, and
      `Activation(LeakyReLU())` a LeakyReLU;
    - the layer `a + scale b` of InceptionResNetV2 becomes a Rescaling and a sum.

    Args:
        graph: a `Graph`; its layers are left as they are.
    """
    nodes: dict[str, Node] = {}
    ends: dict[Tensor, Tensor] = {}
    linear: dict[int, Layer] = {}
    taken = set(graph.nodes)
    for source in graph.nodes.values():
        parts = _parts(replace_tensors(source, ends), taken, linear)
        for part in parts:
            nodes[part.name] = part
            taken.add(part.name)
        ends[Tensor(source.name)] = Tensor(parts[-1].name)
    outputs = replace_tensors(graph.outputs, ends)
    return dataclasses.replace(graph, nodes=nodes, outputs=outputs)


def _parts(node: Node, taken: Collection[str], linear: dict[int, Layer]) -> list[Node]:
    """The nodes that a node becomes; the last one makes its tensor.

    Args:
        node: the `Node`.
        taken: names that new nodes cannot have.
        linear: the layers without their activations, by the id of the layer.
    """
    layer: Layer = node.layer
    if type(layer).__name__ == "CustomScaleLayer":
        return _scaled_sum(node, taken)
    activation: Any = getattr(layer, "activation", None)
    if type(activation) not in _ACTIVATIONS:
        return [node]
    if type(layer) is _layers.Activation:
        return [dataclasses.replace(node, layer=activation)]
    if id(layer) not in linear:
        linear[id(layer)] = linear_copy(layer)
    name = free_name(f"{node.name}_{activation.name}", taken)
    given = [keras.KerasTensor(shape) for shape in node.source_shapes]
    shapes = tuple(tuple(layer.compute_output_spec(x).shape) for x in given)
    tensor = (Tensor(node.name),)
    return [
        dataclasses.replace(node, layer=linear[id(layer)]),
        Node(name, activation, tensor, part_of=node.name, source_shapes=shapes),
    ]


def linear_copy(layer: Layer) -> Layer:
    """A copy of a built layer without its activation."""
    copy = copy_layer(layer, activation="linear")
    copy.build_from_config(layer.get_build_config())
    copy_state(layer, copy)
    return copy


def _scaled_sum(node: Node, taken: Collection[str]) -> list[Node]:
    name, policy = free_name(f"{node.name}_scale", taken), node.layer.dtype_policy
    left, right = node.inputs
    scaling = _layers.Rescaling(float(node.layer.scale), name=name, dtype=policy)
    added = _layers.Add(name=node.name, dtype=policy)
    shapes = node.source_shapes[1:]
    return [
        Node(name, scaling, (right,), part_of=node.name, source_shapes=shapes),
        Node(node.name, added, ([left, Tensor(name)],)),
    ]

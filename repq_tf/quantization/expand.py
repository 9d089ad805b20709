"""Layers that are several operators of the integer file, as several nodes of the graph."""

import dataclasses
from collections.abc import Collection

import numpy as np

from repq_tf.graphs import (
    Graph,
    Node,
    Tensor,
    copy_layer,
    copy_state,
    free_name,
    replace_tensors,
)
from repq_tf.keras_api import Layer, keras, ops
from repq_tf.layers import ReparamConv, SqueezeExcite
from repq_tf.layers.stock import STOCK
from repq_tf.quantization.operators import APART, activation_name, is_one_pixel

_layers = keras.layers
_WEIGHTED = (ReparamConv, *STOCK)
_GATES = {"hard_silu": "hard_sigmoid", "silu": "sigmoid"}


def expand(graph: Graph) -> Graph:
    """Returns a graph in which every node is one operator of the integer file.

    - `SqueezeExcite` becomes a mean, two 1x1 convolutions, a sigmoid and a product;
    - `silu` becomes a sigmoid and a product, `hard_silu` (hard-swish) a hard sigmoid and one;
    - a convolution or dense layer whose activation cannot be fused into it becomes both.

    Args:
        graph: a `Graph`; its layers are left as they are.

    Raises:
        ValueError: a layer with weights is called more than once.
    """
    nodes: dict[str, Node] = {}
    ends: dict[Tensor, Tensor] = {}
    seen: dict[int, str] = {}
    for node in graph.nodes.values():
        if node.layer.weights and seen.setdefault(id(node.layer), node.name) != node.name:
            raise ValueError(
                f"layer {node.name!r} ({type(node.layer).__name__}): it is called more than "
                "once; give each call a layer of its own"
            )
        parts = _parts(replace_tensors(node, ends), graph.nodes)
        for part in parts:
            nodes[part.name] = dataclasses.replace(part, part_of=node.name)
        ends[Tensor(node.name)] = Tensor(parts[-1].name)
    return dataclasses.replace(graph, nodes=nodes, outputs=replace_tensors(graph.outputs, ends))


def _parts(node: Node, taken: Collection[str]) -> list[Node]:
    """The nodes that a node becomes; the last one makes its tensor.

    Args:
        node: the `Node`.
        taken: names that new nodes cannot have.
    """
    layer = node.layer
    if type(layer) is SqueezeExcite:
        return _squeeze_excite(node, taken)
    if type(layer) is _layers.Activation and activation_name(layer) in _GATES:
        function = _GATES[activation_name(layer)]
        gate = _activation(free_name(f"{node.name}_gate", taken), function, node)
        return [gate, _product(node, gate)]
    if isinstance(layer, _WEIGHTED) and activation_name(layer) in APART:
        activation = activation_name(layer)
        linear = dataclasses.replace(node, layer=_linear(layer))
        source = dataclasses.replace(node, args=(Tensor(node.name),), kwargs={})
        name = free_name(f"{node.name}_{activation}", taken)
        return [linear, *_parts(_activation(name, activation, source), taken)]
    return [node]


def _activation(name: str, activation: str, like: Node) -> Node:
    """An activation of what the node `like` reads."""
    options = {"name": name, "dtype": like.layer.dtype_policy}
    softmax = activation == "softmax"
    layer = _layers.Softmax(**options) if softmax else _layers.Activation(activation, **options)
    return Node(name, layer, tuple(like.inputs))


def _product(node: Node, gate: Node) -> Node:
    """What a node reads, times a gate; called as the node."""
    layer = _layers.Multiply(name=node.name, dtype=node.layer.dtype_policy)
    return Node(node.name, layer, ([*node.inputs, Tensor(gate.name)],))


def _linear(layer: Layer) -> Layer:
    """A copy of a weighted layer without its activation."""
    copy = copy_layer(layer, activation="linear")
    copy.build_from_config(layer.get_build_config())
    copy_state(layer, copy)
    return copy


def _squeeze_excite(node: Node, taken: Collection[str]) -> list[Node]:
    """On features `(batch, 1, 1, channels)`, which the product broadcasts without a reshape."""
    layer = node.layer
    options = {"dtype": layer.dtype_policy}
    name = free_name(f"{node.name}_mean", taken)
    mean = _layers.GlobalAveragePooling2D(keepdims=True, name=name, **options)
    parts = [] if is_one_pixel(layer) else [Node(name, mean, tuple(node.inputs))]
    for dense in (layer.reduce, layer.expand):
        kernel, bias = map(ops.convert_to_numpy, (dense.kernel, dense.bias))
        name = free_name(f"{node.name}_{dense.name}", taken)
        activation = "relu" if dense is layer.reduce else "linear"
        pixel = _layers.Conv2D(dense.units, 1, activation=activation, name=name, **options)
        pixel.build((None, 1, 1, kernel.shape[0]))
        pixel.set_weights([np.reshape(kernel, (1, 1, *kernel.shape)), bias])
        pixel.trainable = dense.trainable
        source = (Tensor(parts[-1].name),) if parts else tuple(node.inputs)
        parts.append(Node(name, pixel, source))
    before = dataclasses.replace(node, args=(Tensor(parts[-1].name),), kwargs={})
    gate = _activation(free_name(f"{node.name}_gate", taken), "sigmoid", before)
    return [*parts, gate, _product(node, gate)]

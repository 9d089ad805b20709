"""Layers that are several operators of the integer file, as several nodes of the graph."""

import dataclasses
from collections import Counter
from collections.abc import Collection

import numpy as np

from repq_tf.graphs import (
    Graph,
    Node,
    Tensor,
    copy_layer,
    free_name,
    replace_tensors,
    shared_calls,
)
from repq_tf.keras_api import keras, ops
from repq_tf.layers import ReparamConv, SqueezeExcite
from repq_tf.layers.activations import activation_of
from repq_tf.layers.stock import MAPS, STOCK, normalized_axis
from repq_tf.quantization.channel_order import fold_reversals
from repq_tf.quantization.constants import (
    batch_norm_alone,
    map_alone,
    map_constants,
    mapped_layer,
    separable,
)
from repq_tf.quantization.grids import input_layers
from repq_tf.quantization.lines import lift
from repq_tf.quantization.operators import APART, activation_name, is_one_pixel
from repq_tf.quantization.recognition import recognize
from repq_tf.quantization.splitting import linear_copy, split_layers

_layers = keras.layers
_WEIGHTED = (ReparamConv, *STOCK)
_CHAINS = (_layers.Add, _layers.Multiply)
_GATES = {"hard_silu": "hard_sigmoid", "silu": "sigmoid"}


def expand(graph: Graph) -> Graph:
    """Returns a graph in which every node is one operator of the integer file.

    - layers that mean several others of Keras's become these; see `split_layers`;
    - what people say in several layers becomes the one that it means; see `recognize`;
    - reversed colour channels become those of the kernels that read them;
    - one-dimensional layers become two-dimensional ones, of height 1;
    - `SqueezeExcite` becomes a mean, two 1x1 convolutions, a sigmoid and a product;
    - `silu` becomes a sigmoid and a product, `hard_silu` (hard-swish) a hard sigmoid and one;
    - a convolution or dense layer whose activation cannot be fused into it becomes both;
    - a repeated vector becomes a reshape and a concatenation;
    - a separable convolution becomes a depthwise and a 1x1 one;
    - a sum or a product of many tensors becomes a chain;
    - a batch norm or a map by constants becomes part of the convolution before it, if nothing
      else reads that, and a 1x1 depthwise convolution elsewhere.

    Args:
        graph: a `Graph`; its layers are left as they are.

    Calls of one layer with weights become calls of the same layers.
    """
    return _Expansion(lift(recognize(fold_reversals(split_layers(graph))))).run()


class _Expansion:
    """Makes the nodes of the expanded graph, in topological order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: dict[str, Node] = {}
        self._calls = {
            id(calls[0].layer): calls
            for calls in shared_calls(graph)
            if type(calls[0].layer) not in MAPS  # which are but constants
        }
        self._made: dict[int, tuple[Node, list[Node]]] = {}
        self._ends: dict[Tensor, Tensor] = {}
        read = [tensor.node for node in graph.nodes.values() for tensor in node.inputs]
        self._readers = Counter((*read, *(tensor.node for tensor in graph.output_tensors)))
        inputs = [node for node in graph.nodes.values() if node.is_input]
        self._preparing = {item.name for node in inputs for item in input_layers(graph, node)}

    def run(self) -> Graph:
        """Expands every node."""
        for node in self.graph.nodes.values():
            parts = self._again(node) if id(node.layer) in self._made else self._parts(node)
            if id(node.layer) in self._calls:
                self._made.setdefault(id(node.layer), (node, parts))
            for part in parts:
                whole = node.part_of or node.name
                self.nodes[part.name] = dataclasses.replace(part, part_of=whole)
            if parts:
                self._ends[Tensor(node.name)] = Tensor(parts[-1].name)
        outputs = replace_tensors(self.graph.outputs, self._ends)
        return dataclasses.replace(self.graph, nodes=self.nodes, outputs=outputs)

    def _again(self, source: Node) -> list[Node]:
        """The nodes of another call of a layer: they call the layers of the first one's."""
        first, parts = self._made[id(source.layer)]
        given = replace_tensors(first, self._ends).inputs
        replaced = dict(zip(given, replace_tensors(source, self._ends).inputs, strict=True))
        names = {}
        for part in parts:
            name = f"{source.name}{part.name.removeprefix(first.name)}"
            names[part.name] = free_name(name, {*self.graph.nodes} - {source.name})
        tensors = {Tensor(old): Tensor(new) for old, new in names.items()} | replaced
        return [
            dataclasses.replace(replace_tensors(part, tensors), name=names[part.name])
            for part in parts
        ]

    def _parts(self, source: Node) -> list[Node]:
        """The nodes that a node becomes; the last one makes its tensor. None is part of one."""
        node, taken = replace_tensors(source, self._ends), self.graph.nodes
        if node.name in self._preparing:
            return [node]
        if type(node.layer) is _layers.BatchNormalization:
            of_channels = normalized_axis(node.layer) in (-1, node.layer.input_spec.ndim - 1)
            joins = not of_channels or self._joins_convolution(source)
            return [node] if joins else batch_norm_alone(node, taken)
        if type(node.layer) in MAPS:
            return self._map(source, node)
        return _parts(node, taken)

    def _joins_convolution(self, source: Node) -> bool:
        """Whether a batch norm stands behind a convolution that nothing else reads."""
        tensor = source.inputs[0]
        before = self.nodes[self._ends.get(tensor, tensor).node]
        if type(before.layer) not in STOCK or activation_name(before.layer) != "linear":
            return False
        return self._are_calls_alike(source) and self._readers[tensor.node] == 1

    def _are_calls_alike(self, source: Node) -> bool:
        """Whether a batch norm is called behind one layer alone, as often as that."""
        calls = self._calls.get(id(source.layer), [source])
        sources = [self.graph.nodes[call.inputs[0].node] for call in calls]
        layer = sources[0].layer
        together = len(self._calls.get(id(layer), [layer])) == len(calls)
        return together and all(
            node.layer is layer and self._readers[node.name] == 1 for node in sources
        )

    def _map(self, source: Node, node: Node) -> list[Node]:
        """A map by constants: part of the convolution or batch norm before it, or alone."""
        tensor = source.inputs[0]
        before = self.nodes[self._ends.get(tensor, tensor).node]
        constants, joined = map_constants(node), None
        if constants is None:
            return [node]  # which is refused
        scale, offset = constants
        shared = id(self.graph.nodes[tensor.node].layer) in self._calls
        if self._readers[tensor.node] == 1 and not shared:
            joined = mapped_layer(before.layer, scale, offset)
        if joined is None:
            return map_alone(node, scale, offset, self.graph.nodes)
        self.nodes[before.name] = dataclasses.replace(before, layer=joined)
        self._ends[Tensor(source.name)] = Tensor(before.name)
        return []


def _parts(node: Node, taken: Collection[str]) -> list[Node]:
    """The nodes that a node becomes by itself; the last one makes its tensor.

    Args:
        node: the `Node`.
        taken: names that new nodes cannot have.
    """
    layer = node.layer
    if type(layer) is SqueezeExcite:
        return _squeeze_excite(node, taken)
    if type(layer) is _layers.SeparableConv2D:
        depthwise, pointwise = separable(node, taken)
        return [depthwise, *_parts(pointwise, taken)]
    if type(layer) is _layers.RepeatVector:
        return _repeated(node, taken)
    if isinstance(layer, _CHAINS) and len(node.inputs) > 2:
        return _chain(node, taken)
    if type(layer) is _layers.Activation and activation_name(layer) in _GATES:
        function = _GATES[activation_name(layer)]
        gate = _activation(free_name(f"{node.name}_gate", taken), function, node)
        return [gate, _product(node, gate)]
    if isinstance(layer, _WEIGHTED) and activation_name(layer) in APART:
        activation = activation_name(layer)
        linear = dataclasses.replace(node, layer=linear_copy(layer))
        source = dataclasses.replace(node, args=(Tensor(node.name),), kwargs={})
        name = free_name(f"{node.name}_{activation}", taken)
        return [linear, *_parts(_activation(name, activation, source), taken)]
    return [node]


def _repeated(node: Node, taken: Collection[str]) -> list[Node]:
    """A vector repeated: a reshape, and a concatenation of the one tensor."""
    count, policy = node.layer.n, node.layer.dtype_policy
    name = node.name if count == 1 else free_name(f"{node.name}_row", taken)
    channels = int(node.source_shapes[0][-1])
    row = _layers.Reshape((1, channels), name=name, dtype=policy)
    parts = [dataclasses.replace(node, name=name, layer=row)]
    if count > 1:
        many = _layers.Concatenate(axis=1, name=node.name, dtype=policy)
        parts.append(Node(node.name, many, ([Tensor(name)] * count,)))
    return parts


def _chain(node: Node, taken: Collection[str]) -> list[Node]:
    """A sum or a product of many tensors: of two, and of what comes out and the next."""
    parts: list[Node] = []
    first, *others = node.inputs
    for number, tensor in enumerate(others, 1):
        name = free_name(f"{node.name}_{number}", taken)
        name = node.name if tensor is others[-1] else name
        layer = copy_layer(node.layer, name)
        parts.append(Node(name, layer, ([first, tensor],)))
        first = Tensor(name)
    return parts


def _activation(name: str, activation: str, like: Node) -> Node:
    """An activation of what the node `like` reads."""
    options = {"name": name, "dtype": like.layer.dtype_policy}
    softmax = activation == "softmax"
    function = activation_of(activation)
    layer = _layers.Softmax(**options) if softmax else _layers.Activation(function, **options)
    return Node(name, layer, tuple(like.inputs))


def _product(node: Node, gate: Node) -> Node:
    """What a node reads, times a gate; called as the node."""
    layer = _layers.Multiply(name=node.name, dtype=node.layer.dtype_policy)
    return Node(node.name, layer, ([*node.inputs, Tensor(gate.name)],))


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

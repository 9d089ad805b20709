"""The graph of a Keras model as plain data, and evaluation over it.

Read from `model.get_config()`, the public description that `.keras` files hold.
"""

import dataclasses
from typing import Any

from repq_tf.keras_api import keras


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Output number `index` of the node called `node`."""

    node: str
    index: int = 0


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of one layer.

    Attributes:
        name: unique in the graph; the layer's name where it is called once.
        layer: the layer.
        args: positional arguments, a nested structure with `Tensor` leaves.
        kwargs: keyword arguments, likewise.
    """

    name: str
    layer: Any
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)

    @property
    def inputs(self):
        """The tensors among the arguments."""
        return _tensors((self.args, self.kwargs))

    @property
    def is_input(self):
        """Whether it is an input of the model."""
        return isinstance(self.layer, keras.layers.InputLayer)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and which tensors go in and out.

    Attributes:
        name: the model's name.
        nodes: nodes by name.
        outputs: a `Tensor`, or a list or dict of them.
    """

    name: str
    nodes: dict
    outputs: Any

    def consumers(self, name):
        """The nodes that read a node's outputs."""
        return [
            node
            for node in self.nodes.values()
            if any(tensor.node == name for tensor in node.inputs)
        ]

    @property
    def output_tensors(self):
        """The outputs as a flat list."""
        return _tensors(self.outputs)

    def is_output(self, name):
        """Whether a node's tensor leaves the model."""
        return any(tensor.node == name for tensor in _tensors(self.outputs))


def leaves(structure):
    """The items of nested lists, tuples and dicts, in order."""
    if isinstance(structure, dict):
        structure = list(structure.values())
    elif not isinstance(structure, list | tuple):
        return [structure]
    return [leaf for item in structure for leaf in leaves(item)]


def _tensors(structure):
    return [leaf for leaf in leaves(structure) if isinstance(leaf, Tensor)]


def _map(function, structure):
    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, dict):
        return {key: _map(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_map(function, item) for item in structure)
    return structure


def read_graph(model):
    """Reads a Functional or Sequential Keras model; nested models are inlined.

    Args:
        model: the model.

    Returns:
        A `Graph`.

    Raises:
        ValueError: the model is subclassed, not built, or holds an operation that
            is not a layer.
    """
    if isinstance(model, keras.Sequential):
        return _read_sequential(model)
    config = model.get_config() if isinstance(model, keras.Model) else {}
    if "output_layers" not in config:
        raise ValueError(
            "model must be a Functional or Sequential Keras model. "
            f"Received: {type(model).__name__}"
        )
    layers = {layer.name: layer for layer in model.layers}
    nodes, produced = {}, {}
    for entry in config["layers"]:
        name = entry["name"]
        if name not in layers:
            raise ValueError(
                f"operation {name!r} ({entry['class_name']}) is not a Keras layer; use the "
                "layer of the same meaning (keras.layers.Add for +, say)"
            )
        calls = entry["inbound_nodes"] or [{"args": [], "kwargs": {}}]
        for index, call in enumerate(calls):
            unique = name if index == 0 else f"{name}_call{index}"
            produced[name, index] = unique
            args, kwargs = _decode(call["args"]), _decode(call["kwargs"])
            nodes[unique] = Node(unique, layers[name], tuple(args), kwargs)

    def link(history):
        name, index, output = history
        # A nested model's calls are counted from 1 where it makes an output.
        return Tensor(produced.get((name, index)) or produced[name, 0], output)

    def link_outputs(structure):
        if isinstance(structure, dict):
            return {key: link_outputs(value) for key, value in structure.items()}
        if structure and isinstance(structure[0], str):
            return link(structure)
        return [link_outputs(item) for item in structure]

    outputs = link_outputs(config["output_layers"])
    nodes = {
        name: dataclasses.replace(
            node,
            args=_map(lambda t: link(t.node), node.args),
            kwargs=_map(lambda t: link(t.node), node.kwargs),
        )
        for name, node in nodes.items()
    }
    return _inline(Graph(model.name, _sort(nodes), outputs))


def _decode(value):
    """Replaces serialized Keras tensors by `Tensor(history)`, linked afterwards."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            return Tensor(tuple(value["config"]["keras_history"]))
        if value.get("class_name") == "__tuple__":
            return tuple(_decode(item) for item in value["items"])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_decode(item) for item in value]
    return value


def _read_sequential(model):
    if not model.built:
        raise ValueError(
            f"model {model.name!r} is not built; give it a keras.Input or call it once"
        )
    source = keras.layers.InputLayer(batch_shape=model.input_shape, name="input")
    nodes = {"input": Node("input", source)}
    last = "input"
    for layer in model.layers:
        nodes[layer.name] = Node(layer.name, layer, (Tensor(last),))
        last = layer.name
    return _inline(Graph(model.name, nodes, Tensor(last)))


def _sort(nodes):
    ordered, waiting = {}, dict(nodes)
    while waiting:
        ready = [
            name
            for name, node in waiting.items()
            if all(tensor.node in ordered for tensor in node.inputs)
        ]
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered


def _inline(graph):
    """Replaces nested models by their nodes."""
    nodes, renamed = {}, {}

    def link(tensor):
        return renamed.get(tensor, tensor)

    for node in graph.nodes.values():
        node = dataclasses.replace(
            node, args=_map(link, node.args), kwargs=_map(link, node.kwargs)
        )
        if not isinstance(node.layer, keras.Model):
            nodes[node.name] = node
            continue
        inner = read_graph(node.layer)
        sources = iter(node.inputs)
        inside = {}
        for item in inner.nodes.values():
            if item.is_input:
                inside[item.name] = next(sources)
                continue
            name = f"{node.name}_{item.name}"

            def relink(tensor, inside=inside):
                target = inside[tensor.node]
                return target if isinstance(target, Tensor) else Tensor(target[0], tensor.index)

            nodes[name] = dataclasses.replace(
                item,
                name=name,
                args=_map(relink, item.args),
                kwargs=_map(relink, item.kwargs),
            )
            inside[item.name] = (name,)
        for index, tensor in enumerate(_tensors(inner.outputs)):
            renamed[Tensor(node.name, index)] = relink(tensor)
    return Graph(graph.name, nodes, _map(link, graph.outputs))


def evaluate(graph, feed, apply):
    """Evaluates a graph node by node, dropping values when nobody needs them more.

    Args:
        graph: a `Graph`.
        feed: `feed(node)` returns the value of an input node.
        apply: `apply(node, args, kwargs)` returns the node's output or outputs, given
            arguments in which values stand for tensors.

    Returns:
        The values of `graph.outputs`, in its structure.
    """
    waiting = {}
    for node in graph.nodes.values():
        for tensor in node.inputs:
            waiting[tensor.node] = waiting.get(tensor.node, 0) + 1
    for tensor in _tensors(graph.outputs):
        waiting[tensor.node] = waiting.get(tensor.node, 0) + 1
    values = {}

    def value(tensor):
        return values[tensor.node][tensor.index]

    for node in graph.nodes.values():
        if node.is_input:
            result = feed(node)
        else:
            result = apply(node, _map(value, node.args), _map(value, node.kwargs))
        values[node.name] = result if isinstance(result, tuple) else (result,)
        for tensor in node.inputs:
            waiting[tensor.node] -= 1
            if not waiting[tensor.node]:
                del values[tensor.node]
    return _map(value, graph.outputs)


def rebuild(graph, apply, apply_input=None, name=None):
    """Builds a new Functional model by walking a graph.

    Args:
        graph: a `Graph`.
        apply: as for `evaluate`, on Keras tensors.
        apply_input: `apply_input(node, tensor)` is called for each input of the model
            and returns what stands for it inside.
        name: of the new model.

    Returns:
        A `keras.Model` with the graph's inputs and outputs.
    """
    inputs = []

    def feed(node):
        config = node.layer.get_config()
        inputs.append(
            keras.Input(
                batch_shape=config["batch_shape"], dtype=config["dtype"], name=node.name
            )
        )
        return inputs[-1] if apply_input is None else apply_input(node, inputs[-1])

    outputs = evaluate(graph, feed, apply)
    single = inputs[0] if len(inputs) == 1 else inputs
    return keras.Model(single, outputs, name=name or graph.name)


def copy_layer(layer, name=None, **changes):
    """A new, unbuilt layer of the same configuration, but for the changes."""
    config = layer.get_config()
    return type(layer).from_config({**config, "name": name or layer.name, **changes})

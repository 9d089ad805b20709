"""The graph of a Keras model as plain data: nodes, and the tensors between them.

Read from `model.get_config()`, the public description that `.keras` files hold.
"""

import dataclasses
from collections.abc import Callable, Collection, Container, Mapping
from typing import Any

from repq_tf.graphs import legacy_config
from repq_tf.keras_api import LEGACY, Layer, Shape, check_same_keras, keras, tree


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
        part_of: the name of the layer that it is a part of; None for a whole layer.
    """

    name: str
    layer: Layer
    args: tuple = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    part_of: str | None = None

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors_of((self.args, self.kwargs))

    @property
    def is_input(self) -> bool:
        """Whether it is an input of the model."""
        return isinstance(self.layer, keras.layers.InputLayer)

    @property
    def input_shape(self) -> Shape:
        """The shape of an input of the model, with the batch."""
        return tuple(self.layer.output.shape)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and which tensors go in and out.

    Attributes:
        name: the model's name.
        nodes: nodes by name.
        inputs: a `Tensor`, or a list or dict of them: what the model is called with.
        outputs: a `Tensor`, or a list or dict of them.
        output_names: of the outputs, in order: what the model's layers that make them are
            called, and losses and metrics keyed by.
    """

    name: str
    nodes: dict[str, Node]
    inputs: Any
    outputs: Any
    output_names: tuple[str, ...] = ()

    def consumers(self, name: str) -> list[Node]:
        """The nodes that read a node's outputs."""
        return [
            node
            for node in self.nodes.values()
            if any(tensor.node == name for tensor in node.inputs)
        ]

    @property
    def output_tensors(self) -> list[Tensor]:
        """The outputs as a flat list."""
        return tensors_of(self.outputs)

    @property
    def output_keys(self) -> list[str]:
        """What the outputs are called where each name is that of one: in the file, say."""
        keys: Collection[str] = self.output_names
        if isinstance(self.outputs, dict) and len(self.outputs) == len(keys):
            keys = self.outputs
        found: list[str] = []
        for key in keys:
            found.append(free_name(key, found))
        return found

    def is_output(self, name: str) -> bool:
        """Whether a node's tensor leaves the model."""
        return any(tensor.node == name for tensor in tensors_of(self.outputs))


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or a longer one if it is taken."""
    return name if name not in taken else free_name(f"{name}_explicit", taken)


def leaves(structure: Any) -> list[Any]:
    """The items of nested lists, tuples and dicts, in order."""
    if isinstance(structure, dict):
        structure = list(structure.values())
    elif not isinstance(structure, list | tuple):
        return [structure]
    return [leaf for item in structure for leaf in leaves(item)]


def tensors_of(structure: Any) -> list[Tensor]:
    """The `Tensor`s among the items of nested lists, tuples and dicts, in order."""
    return [leaf for leaf in leaves(structure) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """Applies a function to the `Tensor`s of a nested structure; returns a like one."""
    return map_leaves(
        lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, structure
    )


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Applies a function to the items of nested lists, tuples and dicts; returns a like one."""
    if isinstance(structure, dict):
        return {key: map_leaves(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(map_leaves(function, item) for item in structure)
    return function(structure)


def replace_tensors(structure: Any, tensors: Mapping[Tensor, Any]) -> Any:
    """The structure, or `Node`, with the `Tensor`s that are keys of a dict replaced."""
    if isinstance(structure, Node):
        args, kwargs = replace_tensors((structure.args, structure.kwargs), tensors)
        return dataclasses.replace(structure, args=args, kwargs=kwargs)
    return map_tensors(lambda tensor: tensors.get(tensor, tensor), structure)


def pairs(structure: Any, values: Any) -> list[tuple[Any, Any]]:
    """The leaves of a structure, in order, with those of another one of the same form."""
    if isinstance(structure, dict) and isinstance(values, dict):
        return [pair for key, item in structure.items() for pair in pairs(item, values[key])]
    return list(zip(leaves(structure), leaves(values), strict=True))


def read_graph(model: keras.Model) -> Graph:
    """Reads a Functional or Sequential Keras model; nested models are inlined.

    Args:
        model: the model.

    Returns:
        A `Graph`.

    Raises:
        ValueError: the model is subclassed, not built, or holds an operation that
            is not a layer.
    """
    check_same_keras(model, "model")
    if isinstance(model, keras.Sequential):
        return _read_sequential(model)
    config = model.get_config() if isinstance(model, keras.Model) else {}
    if "output_layers" not in config:
        raise ValueError(
            "model must be a Functional or Sequential Keras model. "
            f"Received: {type(model).__name__}"
        )
    layers = {layer.name: layer for layer in model.layers}
    nodes, produced, owners = {}, {}, {}
    for entry in config["layers"]:
        name = entry["name"]
        if name not in layers:
            raise ValueError(
                f"operation {name!r} ({entry['class_name']}) is not a Keras layer; use the "
                "layer of the same meaning (keras.layers.Add for +, say)"
            )
        calls = entry["inbound_nodes"]
        if LEGACY:
            calls = legacy_config.calls(layers[name], calls)
        calls = calls or [{"args": [], "kwargs": {}}]
        for index, call in enumerate(calls):
            unique = name if index == 0 else f"{name}_call{index}"
            produced[name, index], owners[unique] = unique, name
            args, kwargs = _decode(call["args"]), _decode(call["kwargs"])
            nodes[unique] = Node(unique, layers[name], tuple(args), kwargs)

    def link(history: Any) -> Tensor:
        name, index, output = history
        # A nested model's calls are counted from 1 where it makes an output.
        return Tensor(produced.get((name, index)) or produced[name, 0], output)

    def link_ends(structure: Any) -> Any:
        if isinstance(structure, dict):
            return {key: link_ends(value) for key, value in structure.items()}
        if structure and isinstance(structure[0], str):
            return link(structure)
        return [link_ends(item) for item in structure]

    ends = [config["input_layers"], config["output_layers"]]
    if LEGACY:
        ends = [legacy_config.ends(end) for end in ends]
    inputs, outputs = map(link_ends, ends)
    nodes = {
        name: dataclasses.replace(
            node,
            args=map_tensors(lambda t: link(t.node), node.args),
            kwargs=map_tensors(lambda t: link(t.node), node.kwargs),
        )
        for name, node in nodes.items()
    }
    names = tuple(owners[tensor.node] for tensor in tensors_of(outputs))
    return _inline(Graph(model.name, _sort(nodes), inputs, outputs, names))


def _decode(value: Any) -> Any:
    """Replaces serialized Keras tensors by `Tensor(history)`, linked afterwards."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            history: Any = tuple(value["config"]["keras_history"])
            return Tensor(history)
        if value.get("class_name") == "__tuple__":
            return tuple(_decode(item) for item in value["items"])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_decode(item) for item in value]
    return value


def _read_sequential(model: keras.Sequential) -> Graph:
    if not model.layers:
        raise ValueError(f"model {model.name!r} must have layers. Received: none")
    if not model.built:
        raise ValueError(
            f"model {model.name!r} is not built; give it a keras.Input or call it once"
        )
    tensor = keras.Input(batch_shape=model.input_shape, name="input")
    nodes = {"input": Node("input", keras.Model(tensor, tensor).layers[0])}
    last = "input"
    for layer in model.layers:
        nodes[layer.name] = Node(layer.name, layer, (Tensor(last),))
        last = layer.name
    return _inline(Graph(model.name, nodes, Tensor("input"), Tensor(last), (last,)))


def _sort(nodes: dict[str, Node]) -> dict[str, Node]:
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


def _inline(graph: Graph) -> Graph:
    """Replaces nested models by their nodes."""
    nodes: dict[str, Node] = {}
    renamed: dict[Tensor, Tensor] = {}

    for node in graph.nodes.values():
        node = replace_tensors(node, renamed)
        if not isinstance(node.layer, keras.Model):
            nodes[node.name] = node
            continue
        inner = read_graph(node.layer)
        given = (*node.args, *node.kwargs.values())[0]
        inside = {tensor.node: source for tensor, source in pairs(inner.inputs, given)}
        for item in inner.nodes.values():
            if item.is_input:
                continue
            name = f"{node.name}_{item.name}"

            def relink(tensor: Tensor, inside: dict = inside) -> Tensor:
                target = inside[tensor.node]
                return target if isinstance(target, Tensor) else Tensor(target[0], tensor.index)

            nodes[name] = dataclasses.replace(
                item,
                name=name,
                args=map_tensors(relink, item.args),
                kwargs=map_tensors(relink, item.kwargs),
            )
            inside[item.name] = (name,)
        for index, tensor in enumerate(tree.flatten(inner.outputs)):
            renamed[Tensor(node.name, index)] = relink(tensor)
    outputs = replace_tensors(graph.outputs, renamed)
    return dataclasses.replace(graph, nodes=nodes, outputs=outputs)

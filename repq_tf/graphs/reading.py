"""Reading the graph of a model from `model.get_config()`, which `.keras` files hold, too."""

import dataclasses
from typing import Any

import numpy as np

from repq_tf.graphs import legacy_config
from repq_tf.graphs.graph import (
    Graph,
    Node,
    Tensor,
    map_tensors,
    pairs,
    replace_tensors,
    tensors_of,
)
from repq_tf.graphs.operations import as_layer
from repq_tf.keras_api import LEGACY, Layer, Shape, check_same_keras, keras, tree


def read_graph(model: keras.Model) -> Graph:
    """Reads a Functional or Sequential Keras model; nested models are inlined.

    Args:
        model: the model.

    Returns:
        A `Graph`.

    Raises:
        ValueError: the model is subclassed, not built, or holds what Keras cannot save.
    """
    check_same_keras(model, "model")
    if isinstance(model, keras.Sequential):
        return _read_sequential(model)
    try:
        config = model.get_config() if isinstance(model, keras.Model) else {}
    except TypeError as error:
        raise ValueError(
            f"model {model.name!r} must be one that Keras can save; give its layers functions "
            f"made by def. Received: {error}"
        ) from error
    if "output_layers" not in config:
        raise ValueError(
            "model must be a Functional or Sequential Keras model. "
            f"Received: {type(model).__name__}"
        )
    layers = {layer.name: layer for layer in _operations(model)}
    nodes, produced, owners = {}, {}, {}
    shapes: dict[Any, Shape] = {}
    for entry in config["layers"]:
        name = entry["name"]
        calls = entry["inbound_nodes"]
        if LEGACY:
            calls = legacy_config.calls(layers[name], calls)
        calls = calls or [{"args": [], "kwargs": {}}]
        for index, call in enumerate(calls):
            unique = name if index == 0 else f"{name}_call{index}"
            produced[name, index], owners[unique] = unique, name
            args, kwargs = _decode(call["args"], shapes), _decode(call["kwargs"], shapes)
            nodes[unique] = _node(unique, layers[name], args, kwargs, shapes)

    def link(history: Any, first: int = int(LEGACY)) -> Tensor:
        """The tensor of a history that counts the calls of a nested model from `first`."""
        name, index, output = history
        return Tensor(produced[name, index - first * _is_nested(layers[name])], output)

    def link_ends(structure: Any) -> Any:
        if isinstance(structure, dict):
            return {key: link_ends(value) for key, value in structure.items()}
        if structure and isinstance(structure[0], str):
            return link(structure, first=1)
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


def _is_nested(layer: Any) -> bool:
    """Whether the first call that a configuration knows of is that which made the layer."""
    return isinstance(layer, keras.Model) and (
        LEGACY or not isinstance(layer, keras.Sequential)
    )


def _operations(model: keras.Model) -> list[Any]:
    """The layers of a model, and the operations that are none."""
    return model.layers if LEGACY else model.operations


def _node(
    name: str, layer: Any, args: list[Any], kwargs: dict[str, Any], shapes: dict[Any, Shape]
) -> Node:
    """A call, of the layer of the same meaning where it is one of an operation."""
    given = tuple(args)
    if not isinstance(layer, Layer):
        # The tensors of a configuration are their histories until they are linked.
        layer, given, kwargs = as_layer(
            layer, args, kwargs, lambda value: shapes.get(getattr(value, "node", None))
        )
    sources = tensors_of((given, kwargs))
    found = tuple(shapes[tensor.node] for tensor in sources if tensor.node in shapes)
    return Node(name, layer, given, kwargs, source_shapes=found)


def _decode(value: Any, shapes: dict[Any, Shape]) -> Any:
    """Replaces serialized Keras tensors by `Tensor(history)`, linked afterwards."""

    def decode(item: Any) -> Any:
        return _decode(item, shapes)

    if isinstance(value, dict):
        kind = value.get("class_name")
        config: Any = value.get("config")
        if kind == "__keras_tensor__":
            history: Any = tuple(config["keras_history"])
            if "shape" in config:  # tf_keras does not say
                shapes[history] = tuple(config["shape"])
            return Tensor(history)
        if kind == "__tuple__":
            return tuple(map(decode, value["items"]))
        if kind in ("__numpy__", "__tensor__"):
            return np.asarray(config["value"], config["dtype"])
        if kind == "__slice__":
            return slice(*(decode(config[name]) for name in ("start", "stop", "step")))
        if kind == "__ellipsis__":
            return Ellipsis
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(decode, value))
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
        shapes = _input_shapes(layer)
        nodes[layer.name] = Node(layer.name, layer, (Tensor(last),), source_shapes=shapes)
        last = layer.name
    return _inline(Graph(model.name, nodes, Tensor("input"), Tensor(last), (last,)))


def _input_shapes(layer: Layer) -> tuple[Shape, ...]:
    try:
        return (tuple(layer.input.shape),)
    except (AttributeError, ValueError):  # it has another model's, too
        return ()


def _sort(nodes: dict[str, Node]) -> dict[str, Node]:
    """Nodes behind those that they read: in rounds, each of all that then have their inputs."""
    places = {name: place for place, name in enumerate(nodes)}
    sources = {name: {tensor.node for tensor in node.inputs} for name, node in nodes.items()}
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, read in sources.items():
        for source in read:
            readers[source].append(name)
    missing = {name: len(read) for name, read in sources.items()}
    ready = [name for name, count in missing.items() if not count]
    ordered: dict[str, Node] = {}
    while ready:
        ordered |= {name: nodes[name] for name in ready}
        freed = []
        for reader in (reader for name in ready for reader in readers[name]):
            missing[reader] -= 1
            if not missing[reader]:
                freed.append(reader)
        ready = sorted(freed, key=places.__getitem__)
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

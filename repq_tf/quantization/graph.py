"""The graph of a Keras model as plain data, and evaluation over it.

Read from `model.get_config()`, the public description that `.keras` files hold.
"""

import dataclasses

from repq_tf.keras_api import LEGACY, check_same_keras, keras, tree
from repq_tf.layers.freezing import copy_trainable
from repq_tf.quantization import legacy_config
from repq_tf.quantization.nodes import (
    Graph,
    Node,
    Tensor,
    leaves,
    map_leaves,
    map_tensors,
    replace_tensors,
    tensors_of,
)


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

    def link(history):
        name, index, output = history
        # A nested model's calls are counted from 1 where it makes an output.
        return Tensor(produced.get((name, index)) or produced[name, 0], output)

    def link_ends(structure):
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

            def relink(tensor, inside=inside):
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


def pairs(structure, values):
    """The leaves of a structure, in order, with those of another one of the same form."""
    if isinstance(structure, dict) and isinstance(values, dict):
        return [pair for key, item in structure.items() for pair in pairs(item, values[key])]
    return list(zip(leaves(structure), leaves(values), strict=True))


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
    for tensor in tensors_of(graph.outputs):
        waiting[tensor.node] = waiting.get(tensor.node, 0) + 1
    values = {}

    def value(tensor):
        return values[tensor.node][tensor.index]

    for node in graph.nodes.values():
        if node.is_input:
            result = feed(node)
        else:
            result = apply(node, map_tensors(value, node.args), map_tensors(value, node.kwargs))
        values[node.name] = result if isinstance(result, tuple) else (result,)
        for tensor in node.inputs:
            waiting[tensor.node] -= 1
            if not waiting[tensor.node]:
                del values[tensor.node]
    return map_tensors(value, graph.outputs)


def rebuild(graph, apply, apply_input=None, name=None):
    """Builds a new Functional model by walking a graph.

    Args:
        graph: a `Graph`.
        apply: as for `evaluate`, on Keras tensors.
        apply_input: `apply_input(node, tensor)` is called for each input of the model
            and returns what stands for it inside.
        name: of the new model.

    Returns:
        A `keras.Model` with the graph's inputs and outputs. Where the layer that makes an
        output has another name than in the graph's model, one of that name follows it.
    """
    inputs = {}

    def feed(node):
        tensor = inputs[node.name] = keras.Input(
            batch_shape=node.input_shape, dtype=node.layer.output.dtype, name=node.name
        )
        return tensor if apply_input is None else apply_input(node, tensor)

    outputs = evaluate(graph, feed, apply)
    ends = graph.inputs
    if isinstance(ends, list) and len(ends) == 1:
        ends = ends[0]
    ends = map_tensors(lambda end: inputs[end.node], ends)
    return keras.Model(ends, _named(ends, outputs, graph.output_names), name=name or graph.name)


def _named(inputs, outputs, names):
    """Outputs made by layers of the given names, unless other layers have these."""
    tensors = leaves(outputs)
    model = keras.Model(inputs, tensors)
    taken, named = {layer.name for layer in model.layers}, {}
    for tensor, there, name in zip(tensors, model.output_names, names, strict=True):
        if there != name and name not in taken:
            taken.add(name)
            layer = keras.layers.Activation("linear", name=name, dtype=tensor.dtype)
            named[id(tensor)] = layer(tensor)
    return map_leaves(lambda tensor: named.get(id(tensor), tensor), outputs)


def copy_layer(layer, name=None, **changes):
    """A new, unbuilt layer of the same configuration, but for the changes."""
    config = layer.get_config()
    return type(layer).from_config({**config, "name": name or layer.name, **changes})


def copy_state(source, target):
    """Gives a built layer the weights of an equal one, and freezes what is frozen of that."""
    copy_trainable(source, target)  # first: tf_keras orders weights by it
    target.set_weights(source.get_weights())


def copy_call(node, args, kwargs, copies, **changes):
    """Calls the copy of a node's layer, which has its weights.

    Args:
        node: the `Node`.
        args: what to call with, positional.
        kwargs: and by name.
        copies: a dict that holds the copies made so far, one for each layer.
        **changes: to the configuration of the copy.
    """
    layer = node.layer
    if id(layer) in copies:
        return copies[id(layer)](*args, **kwargs)
    copy = copies[id(layer)] = copy_layer(layer, node.name, **changes)
    outputs = copy(*args, **kwargs)
    copy_state(layer, copy)
    if isinstance(copy, keras.layers.Normalization):
        copy.finalize_state()  # it computes with constants made of its weights
    return outputs

"""New models from graphs: each node's layer replaced, copied, or left out."""

import sys
from collections.abc import Callable
from typing import Any

from repq_tf.graphs.graph import Graph, Node, leaves, map_leaves, map_tensors
from repq_tf.graphs.operations import OperationLayer
from repq_tf.graphs.running import evaluate
from repq_tf.keras_api import Layer, Tensor, keras
from repq_tf.layers.freezing import copy_trainable


def rebuild(
    graph: Graph,
    apply: Callable[[Node, tuple, dict[str, Any]], Any],
    apply_input: Callable[[Node, Tensor], Any] | None = None,
    name: str | None = None,
) -> keras.Model:
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

    Raises:
        ValueError: it has more layers behind each other than Python lets Keras connect.
    """
    inputs = {}

    def feed(node: Node) -> Any:
        tensor = inputs[node.name] = keras.Input(
            batch_shape=node.input_shape, dtype=node.layer.output.dtype, name=node.name
        )
        return tensor if apply_input is None else apply_input(node, tensor)

    outputs = evaluate(graph, feed, apply)
    ends = graph.inputs
    if isinstance(ends, list) and len(ends) == 1:
        ends = ends[0]
    ends = map_tensors(lambda end: inputs[end.node], ends)
    named = _named(ends, outputs, graph.output_names)
    return _connected(ends, named, name=name or graph.name)


def _connected(inputs: Any, outputs: Any, **options: Any) -> keras.Model:
    """The model between tensors, which Keras finds by a function that calls itself."""
    try:
        return keras.Model(inputs, outputs, **options)
    except RecursionError as error:
        raise ValueError(
            "the network has more layers behind each other than Keras connects within Python's "
            f"recursion limit, {sys.getrecursionlimit()}; call sys.setrecursionlimit(10_000) "
            "before, and before a model of that depth is loaded"
        ) from error


def _named(inputs: Any, outputs: Any, names: tuple[str, ...]) -> Any:
    """Outputs made by layers of the given names, unless other layers have these."""
    tensors = leaves(outputs)
    model = _connected(inputs, tensors)
    taken, named = {layer.name for layer in model.layers}, {}
    for tensor, there, name in zip(tensors, model.output_names, names, strict=True):
        if there != name and name not in taken:
            taken.add(name)
            layer = keras.layers.Activation("linear", name=name, dtype=tensor.dtype)
            named[id(tensor)] = layer(tensor)
    return map_leaves(lambda tensor: named.get(id(tensor), tensor), outputs)


def copy_layer(layer: Layer, name: str | None = None, **changes: Any) -> Layer:
    """A new, unbuilt layer of the same configuration, but for the changes."""
    config = layer.get_config()
    function = getattr(layer, "activation", None)
    if "activation" in config and callable(function) and not isinstance(function, Layer):
        config["activation"] = function  # one that has no name would not be found again
    return type(layer).from_config({**config, "name": name or layer.name, **changes})


def copy_state(source: Layer, target: Layer) -> None:
    """Gives a built layer the weights of an equal one, and freezes what is frozen of that."""
    copy_trainable(source, target)  # first: tf_keras orders weights by it
    target.set_weights(source.get_weights())


def copy_call(
    node: Node, args: tuple, kwargs: dict[str, Any], copies: dict[int, Layer], **changes: Any
) -> Any:
    """Calls the copy of a node's layer, which has its weights.

    Args:
        node: the `Node`.
        args: what to call with, positional.
        kwargs: and by name.
        copies: a dict that holds the copies made so far, one for each layer.
        **changes: to the configuration of the copy.
    """
    layer = node.layer
    if isinstance(layer, OperationLayer):
        return layer.operation(*args, **kwargs)
    if id(layer) in copies:
        return copies[id(layer)](*args, **kwargs)
    copy = copies[id(layer)] = copy_layer(layer, node.name, **changes)
    outputs = copy(*args, **kwargs)
    copy_state(layer, copy)
    if isinstance(copy, keras.layers.Normalization):
        copy.finalize_state()  # it computes with constants made of its weights
    return outputs

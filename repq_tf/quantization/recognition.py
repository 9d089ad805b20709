"""What several layers of a graph mean together: hard sigmoid and hard-swish."""

import dataclasses
from collections.abc import Iterator

from repq_tf.graphs import Graph, Node, Tensor, tensors_of
from repq_tf.keras_api import LEGACY, keras
from repq_tf.quantization.operators import activation_name

_layers = keras.layers


def recognize(graph: Graph) -> Graph:
    """Returns a graph with the layers that some say in several ones.

    `relu6(x + 3) / 6` is the hard sigmoid of x; `relu6(x + 3) x / 6`, in any order of the
    factors, its hard-swish.
    """
    if LEGACY:  # whose hard sigmoid is another one
        return graph
    found = dict(_activations(graph))
    return _without_unread(graph, found) if found else graph


def _activations(graph: Graph) -> Iterator[tuple[str, Node]]:
    """Names of nodes, and the activations that they are."""
    for node in graph.nodes.values():
        source = _clamped(graph, node)
        reader = None if source is None else _only_reader(graph, node)
        if source is None or reader is None:
            continue
        if _is_map(reader, 1 / 6, 0.0):
            yield reader.name, _activation(reader, "hard_sigmoid", source)
        if type(reader.layer) is not _layers.Multiply or len(reader.inputs) != 2:
            continue
        others = [tensor for tensor in reader.inputs if tensor.node != node.name]
        if len(others) != 1:
            continue
        (other,) = others
        behind, before = _only_reader(graph, reader), graph.nodes[other.node]
        if other == source and behind is not None and _is_map(behind, 1 / 6, 0.0):
            yield behind.name, _activation(behind, "hard_silu", source)
        if _is_map(before, 1 / 6, 0.0) and before.inputs == [source]:
            yield reader.name, _activation(reader, "hard_silu", source)


def _clamped(graph: Graph, node: Node) -> Tensor | None:
    """The x of a node that is `relu6(x + 3)`."""
    if type(node.layer) not in (_layers.ReLU, _layers.Activation):
        return None
    if activation_name(node.layer) != "relu6":
        return None
    before = graph.nodes[node.inputs[0].node]
    return before.inputs[0] if _is_map(before, 1.0, 3.0) else None


def _is_map(node: Node, scale: float, offset: float) -> bool:
    """Whether a node is the map by two numbers."""
    if type(node.layer) is not _layers.Rescaling:
        return False
    given = node.layer.scale, node.layer.offset
    return all(
        isinstance(a, int | float) and abs(a - b) < 1e-6
        for a, b in zip(given, (scale, offset), strict=True)
    )


def _only_reader(graph: Graph, node: Node) -> Node | None:
    readers = graph.consumers(node.name)
    return readers[0] if len(readers) == 1 and not graph.is_output(node.name) else None


def _activation(node: Node, name: str, source: Tensor) -> Node:
    layer = _layers.Activation(name, name=node.name, dtype=node.layer.dtype_policy)
    return dataclasses.replace(node, layer=layer, args=(source,), kwargs={})


def _without_unread(graph: Graph, found: dict[str, Node]) -> Graph:
    """The graph with other nodes, and without those that nothing reads then."""
    nodes = {**graph.nodes, **found}
    needed = {tensor.node for tensor in tensors_of(graph.outputs)}
    for name, node in reversed(nodes.items()):
        if name in needed:
            needed.update(tensor.node for tensor in node.inputs)
    kept = {name: n for name, n in nodes.items() if name in needed or n.is_input}
    return dataclasses.replace(graph, nodes=kept)

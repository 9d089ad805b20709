"""Evaluation over a graph, of whatever values are given."""

from collections.abc import Callable
from typing import Any

from repq_tf.graphs.graph import Graph, Node, Tensor, map_tensors, tensors_of


def evaluate(
    graph: Graph,
    feed: Callable[[Node], Any],
    apply: Callable[[Node, tuple, dict[str, Any]], Any],
) -> Any:
    """Evaluates a graph node by node, dropping values when nobody needs them more.

    Args:
        graph: a `Graph`.
        feed: `feed(node)` returns the value of an input node.
        apply: `apply(node, args, kwargs)` returns the node's output or outputs, given
            arguments in which values stand for tensors.

    Returns:
        The values of `graph.outputs`, in its structure.
    """
    waiting: dict[str, int] = {}
    for node in graph.nodes.values():
        for tensor in node.inputs:
            waiting[tensor.node] = waiting.get(tensor.node, 0) + 1
    for tensor in tensors_of(graph.outputs):
        waiting[tensor.node] = waiting.get(tensor.node, 0) + 1
    values: dict[str, tuple[Any, ...]] = {}

    def value(tensor: Tensor) -> Any:
        return values[tensor.node][tensor.index]

    for node in graph.nodes.values():
        if node.is_input:
            result = feed(node)
        else:
            result = apply(node, map_tensors(value, node.args), map_tensors(value, node.kwargs))
        values[node.name] = tuple(result) if isinstance(result, tuple | list) else (result,)
        for tensor in node.inputs:
            waiting[tensor.node] -= 1
            if not waiting[tensor.node]:
                del values[tensor.node]
    return map_tensors(value, graph.outputs)

"""Layers that are called more than once."""

import dataclasses
from collections.abc import Callable

from repq_tf.graphs.graph import Graph, Node
from repq_tf.keras_api import Layer


def shared_calls(
    graph: Graph, of: Callable[[Layer], bool] = lambda layer: bool(layer.weights)
) -> list[list[Node]]:
    """The calls of each layer that is called more than once, in order.

    Args:
        graph: a `Graph`.
        of: `of(layer)` says which layers are of interest; those with weights.
    """
    calls: dict[int, list[Node]] = {}
    for node in graph.nodes.values():
        if of(node.layer):
            calls.setdefault(id(node.layer), []).append(node)
    return [nodes for nodes in calls.values() if len(nodes) > 1]


def calls_together(graph: Graph, of: Callable[[Layer], bool]) -> tuple[Graph, list[list[Node]]]:
    """Brings the calls of shared layers together, as far as they do not need one another.

    Args:
        graph: a `Graph`.
        of: `of(layer)` says which layers are of interest.

    Returns:
        The graph in another topological order, and the calls that stand together in it. Those
        of a layer that reads its own results stand in several places.
    """
    calls = {node.name: nodes for nodes in shared_calls(graph, of) for node in nodes}
    ordered: dict[str, Node] = {}
    waiting, together = dict(graph.nodes), []

    def take(nodes: list[Node]) -> None:
        for node in nodes:
            ordered[node.name] = waiting.pop(node.name)

    def is_ready(node: Node) -> bool:
        return all(tensor.node in ordered for tensor in node.inputs)

    while waiting:
        for node in list(waiting.values()):  # behind what they read, so one pass takes them all
            if node.name not in calls and is_ready(node):
                take([node])
        ready = [node for node in waiting.values() if is_ready(node)]
        names = {node.name for node in ready}
        groups = [[c for c in calls[node.name] if c.name in names] for node in ready]
        complete = [g for g in groups if len(g) == len(calls[g[0].name])]
        for group in (complete or groups)[:1]:
            take(group)
            together.append(group)
    return dataclasses.replace(graph, nodes=ordered), together

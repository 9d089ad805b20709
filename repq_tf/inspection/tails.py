"""A float network in which single layers are replaced, run from these layers on."""

from collections.abc import Collection, Mapping
from typing import Any

from repq_tf.calibration.batches import Batch, input_of
from repq_tf.calibration.prepared import Run, positional
from repq_tf.graphs import Graph, Node, Tensor, map_tensors


class Tails:
    """The tensors of a network for one batch of images, from which tails of it start.

    Args:
        graph: the graph of a model.
        runs: what each node computes, by name.
        batch: the images.
    """

    def __init__(self, graph: Graph, runs: Mapping[str, Run], batch: Batch) -> None:
        self._graph, self._runs = graph, runs
        self._values: dict[str, tuple[Any, ...]] = {}
        for node in graph.nodes.values():
            if node.is_input:
                self._values[node.name] = (input_of(batch, node),)
            else:
                self._values[node.name] = self._run(node, runs[node.name], {})

    def outputs(self, replaced: Mapping[str, Run], tail: Collection[str]) -> list[Any]:
        """The network's outputs with some nodes replaced.

        Args:
            replaced: what the replaced nodes compute, by name.
            tail: the names of these nodes and of all behind them, in order.
        """
        changed: dict[str, tuple[Any, ...]] = {}
        for name in tail:
            run = replaced.get(name, self._runs[name])
            changed[name] = self._run(self._graph.nodes[name], run, changed)
        return [self._value(tensor, changed) for tensor in self._graph.output_tensors]

    def _run(self, node: Node, run: Run, changed: Mapping[str, Any]) -> tuple[Any, ...]:
        args, kwargs = map_tensors(
            lambda tensor: self._value(tensor, changed), (node.args, node.kwargs)
        )
        return run(*positional(node.layer, args, kwargs))

    def _value(self, tensor: Tensor, changed: Mapping[str, Any]) -> Any:
        return changed.get(tensor.node, self._values.get(tensor.node))[tensor.index]


def tail_of(graph: Graph, starts: Collection[str]) -> list[str]:
    """The names of some nodes and of all nodes that depend on them, in order."""
    found: dict[str, None] = {}
    for node in graph.nodes.values():
        if node.name in starts or any(tensor.node in found for tensor in node.inputs):
            found[node.name] = None
    return list(found)

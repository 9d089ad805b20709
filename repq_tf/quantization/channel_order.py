"""Reversed colour channels, as `preprocess_input` of the "caffe" mode makes them.

A reversal moves behind the maps by constants that read it, whose constants it reverses, into
the kernels of the convolutions that read these: a file then has no operator for it.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from repq_tf.graphs import (
    Graph,
    Node,
    OperationLayer,
    Tensor,
    copy_layer,
    copy_state,
    replace_tensors,
    shared_calls,
)
from repq_tf.keras_api import Layer, keras, ops
from repq_tf.layers import Slice
from repq_tf.layers.stock import MAPS
from repq_tf.quantization.constants import map_constants

_layers = keras.layers


def fold_reversals(graph: Graph) -> Graph:
    """Returns a graph in which kernels read reversed channels in their own order."""
    graph = _as_slices(graph)
    for name in [node.name for node in graph.nodes.values() if _reverses(node)]:
        graph = _folded(graph, graph.nodes[name])
    return graph


def _reverses(node: Node) -> bool:
    """Whether a node does nothing but reverse the channels of an image."""
    layer = node.layer
    if type(layer) is not Slice:
        return False
    *others, last = layer.slices
    whole = len(others) == 2 and all(part == slice(None) for part in others)
    return whole and last == slice(None, None, -1)


def _as_slices(graph: Graph) -> Graph:
    """The graph with a `Slice` for each stack of single channels, in reversed order."""
    found = {}
    for node in graph.nodes.values():
        source = _reversed_source(graph, node)
        if source is not None:
            none = [None] * 3
            layer = Slice(none, none, [None, None, -1], name=node.name)
            found[node.name] = dataclasses.replace(node, layer=layer, args=(source,), kwargs={})
    if not found:
        return graph
    nodes, parts = {**graph.nodes, **found}, set()
    for name in found:
        parts |= {tensor.node for tensor in graph.nodes[name].inputs}
    read = {tensor.node for node in nodes.values() for tensor in node.inputs}
    kept = {name: node for name, node in nodes.items() if name not in parts or name in read}
    return dataclasses.replace(graph, nodes=kept)


def _reversed_source(graph: Graph, node: Node) -> Tensor | None:
    """The tensor whose channels a node stacks in reversed order, or None."""
    if not _is_operation(node, "Stack") or node.layer.operation.axis not in (-1, 3):
        return None
    sources, places = set(), []
    for tensor in node.inputs:
        part = graph.nodes[tensor.node]
        key = part.args[1] if _is_operation(part, "GetItem") else None
        if not isinstance(key, tuple) or not isinstance(key[-1], int):
            return None
        if any(item not in (Ellipsis, slice(None)) for item in key[:-1]):
            return None
        sources.add(part.inputs[0])
        places.append(key[-1])
    if len(sources) != 1 or places != list(range(len(places)))[::-1]:
        return None
    (source,) = sources
    shapes = graph.nodes[node.inputs[0].node].source_shapes
    whole = bool(shapes) and len(shapes[0]) == 4 and shapes[0][-1] == len(places)
    return source if whole else None


def _is_operation(node: Node, kind: str) -> bool:
    return (
        isinstance(node.layer, OperationLayer) and type(node.layer.operation).__name__ == kind
    )


def _folded(graph: Graph, reversal: Node) -> Graph:
    """The graph without a reversal, if all that reads it can read the other order."""
    shared = {id(calls[0].layer) for calls in shared_calls(graph)}
    changed: dict[str, Layer] = {}
    waiting = [reversal.name]
    while waiting:
        name = waiting.pop()
        if graph.is_output(name):
            return graph
        for reader in graph.consumers(name):
            layer = _reading_reversed(reader)
            if layer is None or id(reader.layer) in shared:
                return graph
            changed[reader.name] = layer
            if type(reader.layer) in MAPS:
                waiting.append(reader.name)
    return _without(graph, reversal, changed)


def _without(graph: Graph, reversal: Node, changed: Mapping[str, Layer]) -> Graph:
    before = {Tensor(reversal.name): reversal.inputs[0]}
    nodes = {
        name: replace_tensors(
            dataclasses.replace(node, layer=changed.get(name, node.layer)), before
        )
        for name, node in graph.nodes.items()
        if name != reversal.name
    }
    return dataclasses.replace(graph, nodes=nodes)


def _reading_reversed(node: Node) -> Layer | None:
    """A layer that makes of an image what a node does of it with reversed channels, or None.

    Of a map by constants, what is made has the image's own order.
    """
    layer = node.layer
    if type(layer) in MAPS:
        constants = map_constants(node)
        if constants is None:
            return None
        scale, offset = (values[::-1].tolist() for values in constants)
        return _layers.Rescaling(scale, offset, name=layer.name, dtype=layer.dtype_policy)
    if type(layer) is not _layers.Conv2D or layer.groups != 1:
        return None
    copy = copy_layer(layer)
    copy.build_from_config(layer.get_build_config())
    copy_state(layer, copy)
    copy.kernel.assign(np.ascontiguousarray(ops.convert_to_numpy(layer.kernel)[:, :, ::-1]))
    return copy

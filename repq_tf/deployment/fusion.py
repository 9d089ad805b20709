"""What one operator of a float file does at once: a layer, its batch norm, its activation."""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

from repq_tf.graphs import Graph, Node
from repq_tf.keras_api import Layer, keras
from repq_tf.layers import SqueezeExcite
from repq_tf.layers.stock import STOCK, normalized_axis
from repq_tf.quantization.operators import activation_name

_layers = keras.layers
_WEIGHTED = (*STOCK, _layers.SeparableConv2D)
_CLAMPED = (
    *_WEIGHTED,
    *(SqueezeExcite, _layers.Add, _layers.BatchNormalization),
    *(_layers.Multiply, _layers.Subtract),
)
_CLAMPS = ("relu", "relu6")


@dataclasses.dataclass(frozen=True)
class Fusion:
    """What follows a layer in its operator.

    Attributes:
        batch_norm: the `BatchNormalization`, or None.
        activation: "linear", "relu" or "relu6".
    """

    batch_norm: Layer | None = None
    activation: str = "linear"


# By the names of nodes: their `Fusion`s, and the node that does the work of one.
Fusions: TypeAlias = tuple[Mapping[str, Fusion], Mapping[str, str]]


def fuse(graph: Graph) -> Fusions:
    """Finds batch norms and clamps that follow a layer alone.

    Args:
        graph: of a float model of Keras's own layers.

    Returns:
        `(fusions, fused)`: the `Fusion` of each node that has one, and for each node that needs
        no operator any more the node whose operator does its work.
    """
    fusions: dict[str, Fusion] = {}
    fused: dict[str, str] = {}
    for node in graph.nodes.values():
        if node.name in fused or not isinstance(node.layer, _CLAMPED):
            continue
        found, last = Fusion(), node
        if isinstance(node.layer, _WEIGHTED) and _is_linear(node.layer):
            reader = _only_reader(graph, node)
            if reader is not None and _normalizes_channels(reader):
                found, last = Fusion(reader.layer), reader
        linear = (
            not isinstance(node.layer, _WEIGHTED) or activation_name(node.layer) == "linear"
        )
        reader = _only_reader(graph, last)
        if linear and reader is not None and _clamp(reader.layer) in _CLAMPS:
            found = dataclasses.replace(found, activation=_clamp(reader.layer))
            fused[reader.name] = node.name
        if last is not node:
            fused[last.name] = node.name
        if found != Fusion():
            fusions[node.name] = found
    return fusions, fused


def _is_linear(layer: Layer) -> bool:
    return not isinstance(layer, _WEIGHTED) or activation_name(layer) == "linear"


def _only_reader(graph: Graph, node: Node) -> Node | None:
    readers = graph.consumers(node.name)
    return readers[0] if len(readers) == 1 and not graph.is_output(node.name) else None


def _normalizes_channels(node: Node) -> bool:
    layer = node.layer
    return type(layer) is _layers.BatchNormalization and normalized_axis(layer) in (-1, 3)


def _clamp(layer: Layer) -> str:
    return activation_name(layer) if type(layer) in (_layers.ReLU, _layers.Activation) else ""

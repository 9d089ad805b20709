"""Convolutions of a model that can become blocks, and what they compute."""

import collections

import numpy as np

from repq_tf.graphs import Graph, Node, shared_calls
from repq_tf.keras_api import Layer, keras, ops
from repq_tf.layers.stock import (
    CONVOLUTIONS,
    StockConvolution,
    extras,
    normalization,
    normalized_axis,
)
from repq_tf.reparameterization.fit import Target


class Sources:
    """Finds what a node of a model's graph can be converted with.

    Args:
        graph: the `Graph`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.calls = collections.Counter(id(node.layer) for node in graph.nodes.values())
        self._shared = {id(calls[0].layer): calls for calls in shared_calls(graph)}

    def check(self, node: Node) -> None:
        """Raises a ValueError with the reason why a convolution cannot be converted."""
        layer = node.layer
        reasons = {
            "a subclass may compute something else": type(layer) not in CONVOLUTIONS,
            "channels_first": layer.data_format != "channels_last",
            f"dilation_rate {layer.dilation_rate}": any(d != 1 for d in layer.dilation_rate),
            **{f"{name} is set": True for name in extras(layer)},
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(reason)

    def batch_norm(self, node: Node) -> Node | None:
        """The node of the BatchNormalization right behind a convolution, or None.

        Raises:
            ValueError: there is one, but it cannot become part of the convolution's block.
        """
        calls = self._shared.get(id(node.layer), [node])
        behind = [self._batch_norm(call) for call in calls]
        norms = {None if found is None else id(found.layer) for found in behind}
        if len(norms) > 1 or (behind[0] and self.calls[id(behind[0].layer)] != len(calls)):
            return None
        return self._batch_norm(node)

    def _batch_norm(self, node: Node) -> Node | None:
        readers = self.graph.consumers(node.name)
        alone = len(readers) == 1 and not self.graph.is_output(node.name)
        if not alone or type(readers[0].layer) is not keras.layers.BatchNormalization:
            return None
        norm, layer = readers[0].layer, node.layer
        if layer.activation is not keras.activations.linear:
            return None
        name = norm.name
        reasons = {
            f"the axis of {name} is not the channels'": normalized_axis(norm) not in (-1, 3),
            f"{name} differs in trainable": norm.trainable != layer.trainable,
            f"{name} differs in dtype": norm.dtype_policy.name != layer.dtype_policy.name,
            **{f"{key} of {name} is set": True for key in extras(norm)},
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(reason)
        return readers[0]


def target(convolution: StockConvolution, norm: Layer | None = None) -> Target:
    """The `Target` that a convolution, or a dense layer, and the batch norm behind it are."""
    affine = convolution.merge()
    if norm is None:
        return Target(affine)
    mean, gain, beta = normalization(norm)
    variance = np.asarray(ops.convert_to_numpy(norm.moving_variance), np.float64)
    return Target(affine, (mean, variance), (gain, beta))

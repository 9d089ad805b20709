"""Convolutions of a model that can become blocks, and what they compute."""

import collections

import numpy as np

from repq_tf.graphs import Graph, Node
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

    def check(self, node: Node) -> None:
        """Raises a ValueError with the reason why a convolution cannot be converted."""
        layer = node.layer
        reasons = {
            "a subclass may compute something else": type(layer) not in CONVOLUTIONS,
            "called more than once": self.calls[id(layer)] > 1,
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
        readers = self.graph.consumers(node.name)
        alone = len(readers) == 1 and not self.graph.is_output(node.name)
        if not alone or type(readers[0].layer) is not keras.layers.BatchNormalization:
            return None
        norm, layer = readers[0].layer, node.layer
        if layer.activation is not keras.activations.linear or self.calls[id(norm)] > 1:
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


def target(layer: Layer, norm: Layer | None = None) -> Target:
    """The `Target` that a convolution, or a dense layer, and the batch norm behind it are."""
    affine = StockConvolution(layer).merge()
    if norm is None:
        return Target(affine)
    mean, gain, beta = normalization(norm)
    variance = np.asarray(ops.convert_to_numpy(norm.moving_variance), np.float64)
    return Target(affine, (mean, variance), (gain, beta))

"""Constants of channels that move into the biases of the layers that read them.

Of a channel that is k everywhere, a layer without zeros beside its input makes a constant: k
times the sum of its taps for that channel, which its bias can hold. With zeros it does not, at
the borders.
"""

from collections.abc import Mapping

import numpy as np

from repq_tf.graphs import Tensor
from repq_tf.keras_api import Array
from repq_tf.post_training.features import Features
from repq_tf.post_training.linear_maps import LinearMap
from repq_tf.post_training.network import Network

# What float32 does not keep beside 1.
_INVISIBLE = 2.0**-23
# How far a constant may be from itself, as a part of the tensor's largest value.
_EQUAL = 1e-6


class Constants:
    """Moves constants through a network, whose function stays.

    Args:
        network: the `Network`.
        features: the `Features` of its tensors.
    """

    def __init__(self, network: Network, features: Mapping[Tensor, Features]) -> None:
        self._maps, self._features = network.maps, features
        self._roots = roots = network.streams.roots
        makers = np.zeros(len(roots), int)
        # Streams that are not fixed, and whose constants any reader could take.
        self._free, self._movable = np.ones((2, len(roots)), bool)
        self._free[list(network.streams.reasons)] = False
        for linear in network.maps:
            np.add.at(makers, roots[linear.outputs], 1)
            if not takes_constants(linear):
                self._movable[roots[linear.inputs]] = False
        for channels in network.unmovable:
            self._movable[roots[channels]] = False
        self._free &= makers == 1

    def fold(self) -> dict[str, tuple[int, int]]:
        """Makes zero what is constant, its constant having moved where one can.

        A channel is constant where its filter, and what its filter does behind the layers that
        read it, are invisible in float32 beside the layer's largest.

        Returns:
            By the names of layers, how many of their channels are zero now, and how many are
            constants that had to stay.
        """
        found = {}
        for linear in self._maps:
            plain, stored = linear.plain, linear.stored
            if plain is None or stored is None:
                continue
            constant = self._constant(linear, self._features[stored])
            if not constant.any():
                continue
            values = np.where(constant, self._features[stored].highest, 0.0)
            roots = self._roots[linear.outputs]
            gone = constant & (self._movable[roots] | (values == 0))
            bias = linear.affine.bias
            plain.scale_outputs(np.where(constant, 0.0, 1.0))
            plain.shift(np.where(constant & ~gone, bias, 0.0))
            self._move(linear, np.where(gone, values, 0.0), forget=gone)
            self._movable[roots[gone]] = False  # what has moved is there no more
            found[linear.name] = int(gone.sum()), int((constant & ~gone).sum())
        return found

    def absorb(self, scales: Array) -> dict[str, int]:
        """Moves what a channel never falls below, so that its features begin at 0.

        Args:
            scales: what features were divided by since they were measured, for all channels.

        Returns:
            By the names of layers, how many of their channels have been lowered.
        """
        found = {}
        for linear in self._maps:
            plain, stored = linear.plain, linear.stored
            if plain is None or plain.bias is None or stored is None:
                continue
            roots = self._roots[linear.outputs]
            lowest = np.maximum(self._features[stored].lowest / scales[linear.outputs], 0.0)
            lowest = np.where(self._free[roots] & self._movable[roots], lowest, 0.0)
            if lowest.any():
                plain.shift(-lowest)
                self._move(linear, lowest, forget=np.zeros(len(lowest), bool))
                found[linear.name] = int((lowest > 0).sum())
        return found

    def _constant(self, linear: LinearMap, features: Features) -> Array:
        """Which channels that a layer makes are constants."""
        roots = self._roots[linear.outputs]
        made = linear.ranges(made=True)
        read = np.zeros(len(self._roots))
        for reader in self._reading(linear):
            np.maximum.at(read, self._roots[reader.inputs], reader.ranges(made=False))
        done = made * read[roots]
        tiny = (made <= _INVISIBLE * made.max()) & (done <= _INVISIBLE * done.max())
        spread = features.highest - features.lowest
        still = spread <= _EQUAL * features.largest.max()
        return tiny & still & self._free[roots]

    def _reading(self, linear: LinearMap) -> list[LinearMap]:
        made = set(self._roots[linear.outputs])
        return [other for other in self._maps if not made.isdisjoint(self._roots[other.inputs])]

    def _move(self, linear: LinearMap, values: Array, forget: Array) -> None:
        """Adds to the biases of readers what they make of constants.

        Args:
            linear: the layer that has made them.
            values: the constants of its channels, `(out_channels,)`.
            forget: for which of these readers lose their weights.
        """
        moved, kept = np.zeros(len(self._roots)), np.ones(len(self._roots))
        roots = self._roots[linear.outputs]
        moved[roots], kept[roots] = values, ~forget
        done: set[int] = set()
        for reader in self._reading(linear):
            plain = reader.plain
            if plain is None or id(reader.node) in done:
                continue
            done.add(id(reader.node))
            constants = moved[self._roots[reader.inputs]]
            if constants.any():
                plain.shift(reader.affine.response(constants))
            if forget.any():
                plain.scale_inputs(kept[self._roots[reader.inputs]])


def takes_constants(linear: LinearMap) -> bool:
    """Whether the bias of a layer can hold what it makes of a constant channel."""
    return linear.plain is not None and linear.plain.bias is not None and not linear.padded

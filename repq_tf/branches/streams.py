"""Streams: channels, of one tensor or of several, that can only be scaled alike.

Features can be divided by positive numbers, channel by channel, if the weights that make them
are divided and those that read them multiplied: cross-layer equalization (arXiv 1906.04721,
section 4.1). A convolution leaves both of its sides free; an identity ties each channel of its
output to that of its input, and a sum those of all its terms.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from repq_tf.keras_api import Array

# Multiplies weights so that inputs, or outputs, come multiplied by `(channels,)`.
Scaling: TypeAlias = Callable[[Array], None]


class Streams:
    """Which channels share a scale, and which weights can give it to them.

    Channels are whole numbers, and `(channels,)` of these are a tensor's. Those that were
    joined are one stream, however long ago.

    Example:
        >>> streams = Streams()
        >>> x, y = streams.new(4), streams.new(4)
        >>> total = streams.join(x, y)  # x + y
        >>> (streams.roots[x] == streams.roots[y]).all()
        True
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._fixed: list[tuple[Array, str]] = []
        self._inputs: list[tuple[Scaling, Array]] = []
        self._outputs: list[tuple[Scaling, Array]] = []

    def new(self, channels: int) -> Array:
        """New channels, each a stream of its own."""
        first = len(self._parents)
        self._parents.extend(range(first, first + channels))
        return np.arange(first, first + channels)

    def join(self, *tensors: Array) -> Array:
        """Makes the channels of tensors one stream each, those of a single channel with all.

        Returns:
            The channels of the first, as many as the longest tensor has.
        """
        first, *others = np.broadcast_arrays(*tensors)
        for other in others:
            for left, right in zip(map(int, first), map(int, other), strict=True):
                self._parents[self._find(right)] = self._find(left)
        return first

    def fix(self, channels: Array, reason: str) -> None:
        """Forbids channels any scale but 1; of several reasons the first one is told."""
        self._fixed.append((channels, reason))

    def are_fixed(self, channels: Array) -> bool:
        """Whether all of the channels have been forbidden any other scale."""
        fixed = self.reasons
        return all(self._find(channel) in fixed for channel in map(int, channels))

    def read(self, channels: Array, scale_inputs: Scaling) -> None:
        """Notes weights that channels are multiplied by, and what scales them."""
        self._inputs.append((scale_inputs, channels))

    def make(self, channels: Array, scale_outputs: Scaling) -> None:
        """Notes weights that make channels, and what scales them."""
        self._outputs.append((scale_outputs, channels))

    @property
    def roots(self) -> Array:
        """For each channel, the one that stands for its stream."""
        return np.array([self._find(channel) for channel in range(len(self._parents))], int)

    @property
    def reasons(self) -> dict[int, str]:
        """Why streams cannot be scaled, by the channel that stands for each."""
        found: dict[int, str] = {}
        for channels, reason in self._fixed:
            for channel in map(int, channels):
                found.setdefault(self._find(channel), reason)
        return found

    def scale(self, scales: Array) -> None:
        """Divides features by scales, and makes their readers multiply by them.

        Args:
            scales: of each channel there is, positive; equal within a stream.
        """
        for sides, values in ((self._inputs, scales), (self._outputs, 1 / scales)):
            for scaling, channels in sides:
                if (values[channels] != 1).any():
                    scaling(values[channels])

    def _find(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

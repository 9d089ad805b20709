"""The scales that equalize a network: a fixed point of ranges, bounded by features."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repq_tf.branches import Streams
from repq_tf.graphs import Tensor
from repq_tf.keras_api import Array
from repq_tf.post_training.features import Features
from repq_tf.post_training.linear_maps import LinearMap
from repq_tf.post_training.network import Network

# Scales that all move less in a round are at their fixed point.
_STILL = 1e-3
_MOST_ROUNDS = 1000


class Weights:
    """The ranges of a layer's channels while they are scaled.

    Args:
        linear: the `LinearMap`.
        roots: for each channel, the number of its stream.
    """

    def __init__(self, linear: LinearMap, roots: Array) -> None:
        self.name = linear.name
        self.inputs, self.outputs = roots[linear.inputs], roots[linear.outputs]
        with np.errstate(divide="ignore"):
            self._logs = np.log(linear.magnitudes())

    def ranges(self, scales: Array, made: bool) -> Array:
        """The logarithm of the largest weight of each channel.

        Args:
            scales: of all streams, as logarithms.
            made: whether of the channels that the layer makes, else of those that it reads.
        """
        inputs, groups, outputs = self._logs.shape
        before = np.reshape(scales[self.inputs], (groups, inputs)).T[:, :, None]
        logs = self._logs + before - np.reshape(scales[self.outputs], (groups, outputs))
        return logs.max(axis=0).ravel() if made else logs.max(axis=2).T.ravel()


@dataclasses.dataclass(frozen=True)
class Side:
    """What some of a layer's channels are to a group of streams.

    Attributes:
        weights: the layer's `Weights`.
        made: whether it makes them, else it reads them.
        places: which of the layer's channels they are.
        streams: the number of each one's stream.
    """

    weights: Weights
    made: bool
    places: Array
    streams: Array


@dataclasses.dataclass
class Group:
    """Streams that the same layers make.

    Attributes:
        streams: their numbers.
        makers: the `Side`s of the layers that make them.
        readers: those of the layers that read them.
        alive: the numbers of those that are scaled.
    """

    streams: Array
    makers: list[Side] = dataclasses.field(default_factory=list)
    readers: list[Side] = dataclasses.field(default_factory=list)
    alive: Any = None

    def ranges(self, scales: Array) -> tuple[Array, Array]:
        """The ranges with which layers make and read its streams; of several, the largest."""
        found = []
        for sides in (self.makers, self.readers):
            largest = np.full(len(scales), -np.inf)
            for side in sides:
                values = side.weights.ranges(scales, side.made)[side.places]
                np.maximum.at(largest, side.streams, values)
            found.append(largest)
        return found[0], found[1]

    @property
    def part(self) -> float:
        """The part of a step to take: half of one where a layer is on both sides.

        Its range follows from two scales of the group, which move at once.
        """
        makers = {id(side.weights) for side in self.makers}
        return 0.5 if any(id(side.weights) in makers for side in self.readers) else 1.0


def form_groups(network: Network, threshold: float) -> list[Group]:
    """The groups of a network's streams, in the order of the layers that first make them.

    Alive are streams whose equal ranges, `sqrt(r1 r2)`, are not below a part of the group's
    largest: the weights of the others do too little to be worth a scale.

    Args:
        network: the `Network`.
        threshold: that part.
    """
    roots = network.streams.roots
    free = np.ones(len(roots), bool)
    free[list(network.streams.reasons)] = False
    layers = [Weights(linear, roots) for linear in network.maps]
    together = Streams()
    numbers = together.new(len(roots))
    together.join(roots, numbers)
    for weights in layers:
        made = weights.outputs[free[weights.outputs]]
        if len(made):
            together.join(made[:1], made)
    labels, groups = together.roots, dict[int, Group]()
    for made in (True, False):
        for weights in layers:
            streams = weights.outputs if made else weights.inputs
            for label in dict.fromkeys(labels[streams[free[streams]]].tolist()):
                places = np.nonzero(free[streams] & (labels[streams] == label))[0]
                members = np.unique(roots[free[roots] & (labels == label)])
                group = groups.setdefault(label, Group(members))
                side = Side(weights, made, places, streams[places])
                (group.makers if made else group.readers).append(side)
    found = [group for group in groups.values() if group.makers and group.readers]
    for group in found:
        made, read = group.ranges(np.zeros(len(roots)))
        equal = (made + read)[group.streams] / 2
        least = np.max(equal) + np.log(threshold)
        group.alive = group.streams[np.isfinite(equal) & (equal >= least)]
    return found


def lower_bounds(network: Network, features: Mapping[Tensor, Features]) -> Array:
    """The least scale of each stream, as a logarithm: no feature leaves its tensor's range.

    With a the largest magnitude of a channel and A that of its tensor, a scale s makes the
    channel as large as `a / s`, which is A at most where `s >= a / A`. A channel that is 0 on
    all images is not enlarged.

    Args:
        network: the `Network`.
        features: the `Features` of its tensors.
    """
    roots = network.streams.roots
    bounds = np.full(len(roots), -np.inf)
    for tensor, channels in network.stored.items():
        largest = features[tensor].largest.astype("float64")
        if largest.any():
            with np.errstate(divide="ignore"):
                np.maximum.at(bounds, roots[channels], np.log(largest / largest.max()))
    return np.where(np.isneginf(bounds), 0.0, bounds)


def find_scales(
    groups: Sequence[Group], bounds: Array, rounds: int | None
) -> tuple[Array, int, float]:
    """Finds scales that make the two ranges of every stream equal, group after group.

    `s <- max(s sqrt(r1 / r2), bound)` divides what makes a stream by `sqrt(r1 / r2)` and
    multiplies what reads it, which gives both the range `sqrt(r1 r2)`; what that changes for
    the groups before is seen in the next round.

    Args:
        groups: of `form_groups`.
        bounds: of `lower_bounds`.
        rounds: how many there are; None for as many as it takes until no scale moves by a
            thousandth, a thousand at most.

    Returns:
        The logarithms of the scales of all streams, the rounds, and by how much of itself a
        scale moved in the last one.
    """
    scales, number, moved = np.zeros(len(bounds)), 0, np.inf
    while moved >= _STILL and number < (rounds or _MOST_ROUNDS):
        number, moved = number + 1, 0.0
        for group in groups:
            alive, (made, read) = group.alive, group.ranges(scales)
            step = (made[alive] - read[alive]) / 2 * group.part
            after = np.maximum(scales[alive] + step, bounds[alive])
            moved = max(moved, np.abs(np.expm1(after - scales[alive])).max(initial=0.0))
            scales[alive] = after
    return scales, number, float(moved)

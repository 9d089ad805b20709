"""Quantization noise: a quantized network beside its float function, layer by layer.

Four networks see the same images: in floating point, with the weights quantized, with the
features quantized, and with both.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repq_tf.calibration.batches import Batch, images_of, input_of
from repq_tf.calibration.images import Images
from repq_tf.calibration.prepared import (
    MergedBlock,
    Run,
    positional,
    prepare_float,
    prepare_rounded,
)
from repq_tf.graphs import Graph, Node, evaluate, map_leaves
from repq_tf.inspection.features import FeatureStatistics
from repq_tf.keras_api import Array, Tensor, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.layers.stock import STOCK
from repq_tf.progress import Progress
from repq_tf.quantization.grids import known_name, own_quantizer

# Whether the quantizers of weights, and those of features, are on in each network.
_NETWORKS = ((False, False), (True, False), (False, True), (True, True))


@dataclasses.dataclass(frozen=True)
class NoiseFigures:
    """Signal-to-noise ratios of one layer's output in decibels, against the float network.

    `10 log10(sum y^2 / sum (y' - y)^2)`, y being the float network's values and y' others;
    None where there is no noise, or no signal.

    Attributes:
        weights_alone: with this layer's weights quantized and nothing else.
        features_alone: with its output quantized and nothing else.
        weights: with the weights of this layer and of all before it quantized.
        features: with its output and all tensors before it quantized.
        total: with both.
    """

    weights_alone: float | None
    features_alone: float | None
    weights: float | None
    features: float | None
    total: float | None


class Ratio:
    """A signal-to-noise ratio of values that come batch by batch."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, real: Array, other: Array) -> None:
        """Adds a batch of the float network's values, and what others are in their place."""
        real = np.asarray(real, np.float64)
        self.signal += np.square(real).sum()
        self.noise += np.square(other - real).sum()

    @property
    def decibels(self) -> float | None:
        """`10 log10(signal / noise)`; None without noise, or without a signal."""
        if not self.signal or not self.noise:
            return None
        return 10 * math.log10(self.signal / self.noise)


@dataclasses.dataclass
class Place:
    """A layer, where its output is stored, and what is measured there.

    Attributes:
        name: by which the user knows the layer.
        node: the layer's node.
        stored: the node behind which its output lies on a grid; itself without a grid.
        features: of its output in the float network.
        weights_alone: a `Ratio`, and so on.
    """

    name: str
    node: Node
    stored: Node
    features: FeatureStatistics
    weights_alone: Ratio = dataclasses.field(default_factory=Ratio)
    features_alone: Ratio = dataclasses.field(default_factory=Ratio)
    accumulated: tuple[Ratio, ...] = dataclasses.field(
        default_factory=lambda: tuple(Ratio() for _ in _NETWORKS)
    )

    @property
    def quantizer(self) -> Quantize | None:
        """The layer that rounds its output, or None."""
        layer = self.stored.layer
        return layer if isinstance(layer, Quantize) else None

    @property
    def noise(self) -> NoiseFigures:
        """The ratios."""
        _, weights, features, total = (ratio.decibels for ratio in self.accumulated)
        alone = self.weights_alone.decibels, self.features_alone.decibels
        return NoiseFigures(*alone, weights, features, total)


def measure(
    graph: Graph,
    images: Images,
    floats: Mapping[str, MergedBlock],
    verbose: bool = True,
) -> list[Place]:
    """Runs the four networks.

    Args:
        graph: the graph of a quantized model.
        images: their `Stored` batches.
        floats: what blocks are in floating point, by name; default: themselves, their kernels
            not rounded.
        verbose: whether to show a progress bar.

    Returns:
        A `Place` for each layer that has a kernel or an output on a grid of its own.

    Raises:
        ValueError: features are not finite; the layer is named.
    """
    networks = _Networks(graph, images, floats)
    progress = Progress("quantization noise", len(images), "batch", verbose)
    for k in range(len(images)):
        networks.add(images[k])
        progress.advance()
    return networks.places


class _Variants:
    """One tensor in the four networks."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


class _Networks:
    def __init__(self, graph: Graph, images: Images, floats: Mapping[str, MergedBlock]) -> None:
        self._graph = graph
        self.places = list(_places(graph, images.size))
        self._made = {place.node.name: place for place in self.places}
        self._stored = {place.stored.name: place for place in self.places}
        self._runs: dict[str, tuple[Run, Run]] = {
            node.name: (
                prepare_float(node.layer, floats.get(node.layer.name)),
                prepare_rounded(node.layer),
            )
            for node in graph.nodes.values()
        }

    def add(self, batch: Batch) -> None:
        self._size = sum(images.size for images in images_of(batch).values())
        evaluate(self._graph, lambda node: self._feed(node, batch), self._apply)

    def _feed(self, node: Node, batch: Batch) -> _Variants:
        result = _Variants((input_of(batch, node),) * len(_NETWORKS))
        self._observe(node, result)
        return result

    def _apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = positional(node.layer, args, kwargs)
        calls = [_pick((args, kwargs), k) for k in range(len(_NETWORKS))]
        runs = self._runs[node.name]
        kind = 0 if isinstance(node.layer, ReparamConv) else 1
        found = [runs[on[kind]](*call) for on, call in zip(_NETWORKS, calls, strict=True)]
        results = tuple(_Variants(values) for values in zip(*found, strict=True))
        made = self._made.get(node.name)
        if made is not None and getattr(node.layer, "weight_quantizer", None) is not None:
            made.weights_alone.add(*map(_array, (found[0][0], runs[1](*calls[0])[0])))
        self._observe(node, results[0])
        stored = self._stored.get(node.name)
        if stored is not None and isinstance(node.layer, Quantize):
            self._round(stored, node.layer, results[0].values[0], calls[-1][0])
        return results

    def _observe(self, node: Node, result: _Variants) -> None:
        place = self._stored.get(node.name)
        if place is None:
            return
        real, *others = map(_array, result.values)
        if not np.isfinite(real).all():
            raise ValueError(f"layer {place.name!r}: its output holds NaN or infinity on data")
        place.features.add(real, self._size)
        for ratio, other in zip(place.accumulated[1:], others, strict=True):
            ratio.add(real, other)

    def _round(
        self, place: Place, layer: Quantize, real: Tensor, args: tuple[Any, ...]
    ) -> None:
        """What a tensor's own quantizer does to the float network, and in the quantized one."""
        quantizer = layer.activation_quantizer
        rounded = quantizer.integers(real) * layer.step
        place.features_alone.add(_array(real), _array(rounded))
        values = layer.values(*args)
        place.features.add_clipped(float(quantizer.clip_rate(values)), real.shape[0])


def _pick(structure: Any, k: int) -> Any:
    return map_leaves(
        lambda leaf: leaf.values[k] if isinstance(leaf, _Variants) else leaf, structure
    )


def _array(value: Tensor) -> Array:
    return np.asarray(ops.convert_to_numpy(value), np.float64)


def _places(graph: Graph, size: int) -> Iterator[Place]:
    for node in graph.nodes.values():
        has_kernel = isinstance(node.layer, ReparamConv) or type(node.layer) in STOCK
        if type(node.layer) is Quantize:
            continue
        if own_quantizer(graph, node) is None and not has_kernel:
            continue
        stored = node
        if not isinstance(node.layer, Quantize):
            readers = graph.consumers(node.name)
            stored = next((r for r in readers if type(r.layer) is Quantize), node)
        yield Place(known_name(graph, node), node, stored, FeatureStatistics(size))

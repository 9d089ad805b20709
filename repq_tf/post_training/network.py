"""The streams of a network: which channels can be scaled, what makes and what reads them."""

import collections
import functools
from collections.abc import Collection, Mapping

import numpy as np

from repq_tf.branches import Streams
from repq_tf.graphs import Graph, Node, Tensor
from repq_tf.keras_api import Array, Layer, keras
from repq_tf.layers import DepthToSpace, ReparamConv, SqueezeExcite
from repq_tf.layers.stock import (
    CONVOLUTIONS,
    SEPARABLE,
    StockConvolution,
    normalized_axis,
    scale_batch_norm,
)
from repq_tf.post_training.features import INSIDE, Features
from repq_tf.post_training.linear_maps import LinearMap
from repq_tf.quantization.operators import FUSED, activation_name
from repq_tf.windows import VALID

_layers = keras.layers
# Without transposed convolutions, whose phases a constant reaches through other weights.
_LINES = (_layers.Conv1D, _layers.DepthwiseConv1D)
_STOCK = (*CONVOLUTIONS, *_LINES, *SEPARABLE, _layers.Dense)
# f(s y) = s f(y) for s > 0.
_HOMOGENEOUS = ("linear", "relu", "leaky_relu")
_ACTIVATIONS = (_layers.ReLU, _layers.Activation, _layers.LeakyReLU, _layers.PReLU)
# Of these a constant channel makes the same constant.
_POOLINGS = tuple(
    getattr(_layers, f"{name}{rank}D")
    for rank in (1, 2)
    for name in (
        "AveragePooling Cropping GlobalAveragePooling GlobalMaxPooling MaxPooling UpSampling"
    ).split()
)
_PASSING = (
    *_POOLINGS,
    _layers.Dropout,
    _layers.SpatialDropout1D,
    _layers.SpatialDropout2D,
    _layers.ZeroPadding1D,
    _layers.ZeroPadding2D,
)
_MOVING = (DepthToSpace, _layers.Flatten, _layers.Reshape)
_JOINING = (
    _layers.Add,
    _layers.Average,
    _layers.Maximum,
    _layers.Minimum,
    _layers.Subtract,
)


class Network:
    """A model's channels as streams, found layer by layer.

    Args:
        graph: the model's `Graph`.
        features: the `Features` of its tensors.
        unclipped: names of the nodes whose ReLU6 counts as a ReLU.

    Attributes:
        streams: the `Streams`.
        maps: the `LinearMap`s in topological order.
        stored: the channels of each tensor that a quantized network stores.
        unmovable: channels that a constant cannot be taken from.
    """

    def __init__(
        self, graph: Graph, features: Mapping[Tensor, Features], unclipped: Collection[str] = ()
    ) -> None:
        self.streams, self.maps = Streams(), list[LinearMap]()
        self.stored: dict[Tensor, Array] = {}
        self.unmovable: list[Array] = []
        self._graph, self._features, self._unclipped = graph, features, unclipped
        self._calls = collections.Counter(id(node.layer) for node in graph.nodes.values())
        self._channels: dict[Tensor, Array] = {}
        self._first: dict[int, tuple[Array, Array]] = {}
        self._inside: dict[int, Array] = {}  # of separable convolutions
        for node in graph.nodes.values():
            self._channels[Tensor(node.name)] = self._outputs(node)
        for tensor, channels in self._channels.items():
            if fused_reader(graph, graph.nodes[tensor.node]) is None:
                self.stored[tensor] = channels
        for tensor in graph.output_tensors:
            self.streams.fix(self._channels[tensor], "an output of the model")

    def _outputs(self, node: Node) -> Array:
        """The channels that a node makes."""
        layer, kind = node.layer, type(node.layer)
        if node.is_input:
            return self._fixed(node, (), "an input of the model")
        inputs = [self._channels[tensor] for tensor in node.inputs]
        if getattr(layer, "data_format", None) == "channels_first" or not inputs:
            return self._unknown(node)
        if isinstance(layer, ReparamConv) or kind in _STOCK:
            return self._activated(node, self._linear(node, inputs[0]))
        if kind is _layers.BatchNormalization:
            return self._normalized(node)
        if kind in _ACTIVATIONS:
            before = self._graph.nodes[node.inputs[0].node]
            if fused_reader(self._graph, before) is not node:
                self.unmovable.append(inputs[0])
            return self._activated(node, inputs[0])
        if kind in _PASSING:
            if kind not in _POOLINGS:
                self.unmovable.append(inputs[0])
            return inputs[0]
        if kind in _MOVING:
            return self._moved(node, inputs[0])
        if kind is _layers.Concatenate and self._along_channels(node):
            return np.concatenate(inputs)
        if kind in _JOINING or kind is _layers.Concatenate:
            self.unmovable.extend(inputs)
            return self.streams.join(*inputs)
        if kind is _layers.Multiply:
            return self._product(node, inputs)
        if kind is SqueezeExcite:
            return self._gated(node, inputs[0])
        return self._unknown(node)

    # What is not scaled.

    def _fixed(self, node: Node, inputs: Collection[Array], reason: str) -> Array:
        """New channels, fixed as those that the node reads are."""
        for index in range(1, 1 + max(self._indices(node))):
            more = self.streams.new(self._features[Tensor(node.name, index)].shape[-1])
            self._channels[Tensor(node.name, index)] = more
            self.streams.fix(more, reason)
        outputs = self.streams.new(self._features[Tensor(node.name)].shape[-1])
        for channels in (*inputs, outputs):
            self.streams.fix(channels, reason)
        return outputs

    def _indices(self, node: Node) -> list[int]:
        return [tensor.index for tensor in self._features if tensor.node == node.name]

    def _unknown(self, node: Node) -> Array:
        inputs = [self._channels[tensor] for tensor in node.inputs]
        kind = type(node.layer).__name__
        return self._fixed(node, inputs, f"{node.name} ({kind}) cannot pass a scale on")

    # What has weights.

    def _linear(self, node: Node, inputs: Array) -> Array:
        layer = node.layer
        if id(layer) in self._first:  # called again, with the same weights
            first, outputs = self._first[id(layer)]
            self.streams.join(first, inputs)
            self.unmovable.append(outputs)
        elif isinstance(layer, ReparamConv):
            outputs = layer.join_streams(inputs, self.streams)
            pixels = self._features[node.inputs[0]].shape[:2]
            flat = len(self._features[node.inputs[0]].shape) == 1
            padded = not flat and layer.window(pixels) != VALID
            self._note(node, inputs, outputs, layer, None, padded)
        elif type(layer) in SEPARABLE:
            depthwise = StockConvolution(layer, "depthwise_kernel")
            inside = self._read(inputs, depthwise)
            self.streams.make(inside, depthwise.scale_outputs)
            name, padded = f"{node.name}/depthwise", _padded(layer)
            self.maps.append(LinearMap(name, inputs, inside, depthwise, None, None, padded))
            self._inside[id(layer)] = inside
            pointwise = StockConvolution(layer, "pointwise_kernel")
            outputs = self._made(node, inside, pointwise, False)
        else:
            outputs = self._made(node, inputs, StockConvolution(layer), _padded(layer))
        self._first.setdefault(id(layer), (inputs, outputs))
        if id(layer) in self._inside:
            self.stored[Tensor(node.name, INSIDE)] = self._inside[id(layer)]
        return outputs

    def _read(self, inputs: Array, stock: StockConvolution) -> Array:
        """New channels for what a stock layer's kernel makes of those that it reads."""
        self.streams.read(inputs, stock.scale_inputs)
        return self.streams.new(stock.merge().out_channels)

    def _made(self, node: Node, inputs: Array, stock: StockConvolution, padded: bool) -> Array:
        """The channels that a stock layer and the batch norm behind it make."""
        outputs, norm = self._read(inputs, stock), self._norm(node)
        if norm is None:
            self.streams.make(outputs, stock.scale_outputs)
        elif norm.gamma is None:
            self.streams.fix(outputs, f"{norm.name} has no gamma")
        else:
            self.streams.make(outputs, functools.partial(scale_batch_norm, norm))
        self._note(node, inputs, outputs, stock, norm, padded)
        return outputs

    def _note(
        self,
        node: Node,
        inputs: Array,
        outputs: Array,
        weights: ReparamConv | StockConvolution,
        norm: Layer | None,
        padded: bool,
    ) -> None:
        end = node
        while (reader := fused_reader(self._graph, end)) is not None:
            end = reader
        self.maps.append(
            LinearMap(node.name, inputs, outputs, weights, norm, Tensor(end.name), padded)
        )

    def _norm(self, node: Node) -> Layer | None:
        """The BatchNormalization that belongs to a stock layer's convolution, or None."""
        reader = fused_reader(self._graph, node)
        if reader is None or type(reader.layer) is not _layers.BatchNormalization:
            return None
        once = self._calls[id(node.layer)] == self._calls[id(reader.layer)] == 1
        rank = len(self._features[Tensor(node.name)].shape)
        last = normalized_axis(reader.layer) in (-1, rank)
        return reader.layer if once and last else None

    def _normalized(self, node: Node) -> Array:
        before = self._graph.nodes[node.inputs[0].node]
        if type(before.layer) in _STOCK and self._norm(before) is node.layer:
            return self._channels[Tensor(before.name)]
        reason = f"{node.name} (BatchNormalization) has no convolution of its own before it"
        return self._fixed(node, [self._channels[node.inputs[0]]], reason)

    def _gated(self, node: Node, inputs: Array) -> Array:
        """The channels that a `SqueezeExcite` weighs; its first layer reads them, too."""
        self.unmovable.append(inputs)
        if id(node.layer) in self._first:
            self.streams.join(self._first[id(node.layer)][0], inputs)
            return inputs
        stock = StockConvolution(node.layer.reduce)
        squeezed = self.streams.new(node.layer.reduced)
        self.streams.fix(squeezed, f"{node.name} keeps what it has inside")
        self.streams.read(inputs, stock.scale_inputs)
        self.maps.append(LinearMap(node.name, inputs, squeezed, stock, None, None, False))
        self._first[id(node.layer)] = inputs, squeezed
        return inputs

    # What has none.

    def _activated(self, node: Node, channels: Array) -> Array:
        """The channels behind the activation that a node is or has."""
        function = getattr(node.layer, "activation", None)
        layer = function if isinstance(function, Layer) else node.layer
        if type(layer) in (_layers.LeakyReLU, _layers.PReLU):
            return channels
        known = layer is node.layer or type(layer) in _ACTIVATIONS
        name = activation_name(layer) if known else type(layer).__name__
        clip = name == "relu6" and node.name not in self._unclipped
        if clip or name not in (*_HOMOGENEOUS, "relu6"):
            self.streams.fix(channels, f"{node.name} has {name}")
        return channels

    def _moved(self, node: Node, inputs: Array) -> Array:
        """Channels behind a layer that only moves numbers: what it makes of theirs."""
        shape = self._features[node.inputs[0]].shape
        # Whole numbers, which no policy casts to a type that cannot hold them.
        numbers = np.broadcast_to(inputs.astype("int32"), (1, *shape))
        moved = np.asarray(keras.ops.convert_to_numpy(node.layer(numbers)), int)
        first, *others = np.unique(np.reshape(moved, (-1, moved.shape[-1])), axis=0)
        return self.streams.join(first, *others)

    def _along_channels(self, node: Node) -> bool:
        rank = len(self._features[node.inputs[0]].shape)
        return node.layer.axis in (-1, rank)

    def _product(self, node: Node, inputs: list[Array]) -> Array:
        """Features times gates, whose scale is fixed: the channels of the features."""
        self.unmovable.extend(inputs)
        free = [channels for channels in inputs if not self.streams.are_fixed(channels)]
        if len(free) > 1:
            return self._fixed(node, inputs, f"{node.name} multiplies features")
        channels = self._features[Tensor(node.name)].shape[-1]
        return np.broadcast_to((free or inputs)[0], (channels,))


def _padded(layer: Layer) -> bool:
    """Whether zeros enter beside a stock layer's input."""
    padding = getattr(layer, "padding", "valid")
    return padding != "valid" and max(layer.kernel_size) > 1


def fused_reader(graph: Graph, node: Node) -> Node | None:
    """The batch norm or the activation that alone reads what a layer with weights makes.

    No tensor is stored before it.
    """
    stock = type(node.layer) in _STOCK
    normalized = type(node.layer) is _layers.BatchNormalization
    if not (stock or normalized or isinstance(node.layer, ReparamConv)):
        return None
    linear = normalized or activation_name(node.layer) == "linear"
    readers = graph.consumers(node.name)
    if not linear or len(readers) != 1 or graph.is_output(node.name):
        return None
    layer = readers[0].layer
    if type(layer) is _layers.BatchNormalization:
        return readers[0] if stock else None
    fuses = type(layer) in (_layers.ReLU, _layers.Activation)
    return readers[0] if fuses and activation_name(layer) in FUSED else None

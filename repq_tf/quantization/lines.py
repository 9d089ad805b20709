"""One-dimensional features `(batch, length, channels)` as images of height 1."""

import dataclasses
from typing import Any

import numpy as np

from repq_tf.graphs import Graph, Node, Tensor, copy_layer, copy_state, free_name, map_tensors
from repq_tf.keras_api import Array, Layer, keras, ops
from repq_tf.layers.stock import MAPS, TRAINING_ONLY
from repq_tf.quantization.grids import input_layers

_layers = keras.layers
# Of single values, or of each channel: they compute the same on images.
_ALIKE = (
    *MAPS,
    *(kind for kind in TRAINING_ONLY if kind is not _layers.SpatialDropout1D),
    *(_layers.Activation, _layers.Add, _layers.ELU, _layers.LeakyReLU, _layers.Maximum),
    *(_layers.Minimum, _layers.Multiply, _layers.ReLU, _layers.Softmax, _layers.Subtract),
    _layers.UnitNormalization,
)
_ANY_RANK = (_layers.Flatten, _layers.Reshape)  # they read values in their order alone


def lift(graph: Graph) -> Graph:
    """Returns a graph without one-dimensional layers: two-dimensional ones are in their place.

    What lies between such layers stays an image; reshapes stand where others need lines.
    """
    lines = any(
        type(node.layer) in _CHANGES and len(_shape(node)) == 3 for node in graph.nodes.values()
    )
    return _Lifting(graph).run() if lines else graph


def is_lifted(layer: Layer) -> bool:
    """Whether a layer is one of one-dimensional features alone, which `lift` takes."""
    kind = type(layer)
    return kind in _CHANGES and kind.__name__.endswith("1D") and not _stays(layer)


def _shape(node: Node) -> tuple[Any, ...]:
    return node.source_shapes[0] if node.source_shapes else ()


class _Lifting:
    """Makes the nodes of the lifted graph, in topological order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: dict[str, Node] = {}
        self._made: dict[int, list[Layer]] = {}  # once for all calls of a layer
        self._images: dict[Tensor, Tensor] = {}  # of the tensors that there are as images
        self._lines: dict[Tensor, Tensor] = {}  # likewise, as lines
        self._kept = {
            item.name
            for node in graph.nodes.values()
            if node.is_input
            for item in input_layers(graph, node)
        }

    def run(self) -> Graph:
        """Lifts every node."""
        for node in self._graph.nodes.values():
            change = _CHANGES.get(type(node.layer))
            rank = len(_shape(node))
            if node.is_input or node.name in self._kept or rank != 3:
                self._nodes[node.name] = node
            elif type(node.layer) in _ANY_RANK:
                self._add(node, [self._images.get(t, t) for t in node.inputs])
            elif change is not None and not _stays(node.layer):
                made = self._made.setdefault(id(node.layer), [])
                if not made:
                    made += change(node.layer)
                self._change(node, made)
            elif type(node.layer) in _ALIKE and any(t in self._images for t in node.inputs):
                self._change(node, [node.layer])
            else:
                self._add(node, list(map(self._line, node.inputs)))
        outputs = map_tensors(self._line, self._graph.outputs)
        return dataclasses.replace(self._graph, nodes=self._nodes, outputs=outputs)

    def _add(self, node: Node, sources: list[Tensor]) -> None:
        many = bool(node.args) and isinstance(node.args[0], list | tuple)
        args = (sources,) if many else tuple(sources)
        self._nodes[node.name] = dataclasses.replace(node, args=args, kwargs={})

    def _change(self, node: Node, changed: list[Layer]) -> None:
        """Puts layers of images, one after the other, in the place of one of lines."""
        shapes = tuple((shape[0], 1, *shape[1:]) for shape in node.source_shapes)
        sources = [
            self._image(t, s) for t, s in zip(node.inputs, node.source_shapes, strict=True)
        ]
        for number, layer in enumerate(changed):
            last = layer is changed[-1]
            name = node.name if last else free_name(f"{node.name}_{number}", self._graph.nodes)
            whole = node.part_of if last else node.part_of or node.name
            self._add(dataclasses.replace(node, name=name, layer=layer, part_of=whole), sources)
            self._nodes[name] = dataclasses.replace(self._nodes[name], source_shapes=shapes)
            sources, shapes = [Tensor(name)], ()
        if not (isinstance(changed[-1], _POOLED) and not changed[-1].keepdims):
            self._images[Tensor(node.name)] = Tensor(node.name)

    def _image(self, tensor: Tensor, shape: tuple[Any, ...]) -> Tensor:
        if tensor not in self._images:
            name = free_name(f"{tensor.node}_image", self._graph.nodes)
            length = -1 if shape[1] is None else shape[1]
            layer = _layers.Reshape((1, length, shape[2]), name=name)
            self._nodes[name] = Node(name, layer, (tensor,), source_shapes=(shape,))
            self._images[tensor] = Tensor(name)
            self._lines[tensor] = tensor
        return self._images[tensor]

    def _line(self, tensor: Tensor) -> Tensor:
        """A tensor as lines, if it is there as an image alone."""
        if self._images.get(tensor) != tensor:
            return tensor
        if tensor not in self._lines:
            name = free_name(f"{tensor.node}_line", self._graph.nodes)
            channels = self._channels(tensor)
            layer = _layers.Reshape((-1, channels), name=name)
            self._nodes[name] = Node(name, layer, (tensor,))
            self._lines[tensor] = Tensor(name)
        return self._lines[tensor]

    def _channels(self, tensor: Tensor) -> int:
        """The channels of an image that a layer makes, from the layers before it."""
        node = self._nodes[tensor.node]
        layer = node.layer
        if isinstance(layer, _layers.Concatenate):
            sizes = list(map(self._channels, node.inputs))
            return sum(sizes) if layer.axis in (-1, 3) else sizes[0]
        count = getattr(layer, "filters", None)
        if count is not None:
            return int(count)
        return int(node.source_shapes[0][-1])


def _stays(layer: Layer) -> bool:
    """Whether a layer of lines is none that images can stand for, and is refused by name."""
    return getattr(layer, "data_format", None) == "channels_first"


def _options(layer: Layer, *names: str) -> dict[str, Any]:
    """The name and the dtype of a layer, and other options."""
    options = {name: getattr(layer, name) for name in names}
    return {"name": layer.name, "dtype": layer.dtype_policy, **options}


def _made(layer: Layer, source: Layer, channels: int, *weights: Any) -> Layer:
    """A built layer with some weights, frozen as its source is."""
    layer.build((None, 1, None, channels))
    layer.set_weights(
        [ops.convert_to_numpy(weight) for weight in weights if weight is not None]
    )
    layer.trainable = source.trainable
    return layer


def _along(numbers: Any) -> tuple[int, int]:
    """A number of a line, as `(height, width)`."""
    return 1, int(numbers if isinstance(numbers, int) else numbers[0])


def _zeros_before(layer: Layer) -> list[Layer]:
    """The zeros that a causal convolution reads before a line, as a layer; none of others."""
    if layer.padding != "causal":
        return []
    (_, length), (_, rate) = map(_along, (layer.kernel_size, layer.dilation_rate))
    sides = ((0, 0), (rate * (length - 1), 0))
    return [_layers.ZeroPadding2D(sides, name=layer.name, dtype=layer.dtype_policy)]


def _padding(layer: Layer) -> str:
    return "valid" if layer.padding == "causal" else str(layer.padding)


def _kernel(variable: Any) -> Array:
    return ops.convert_to_numpy(variable)[None]


def _convolution(layer: Layer) -> list[Layer]:
    kernel = _kernel(layer.kernel)
    made = _layers.Conv2D(
        layer.filters,
        _along(layer.kernel_size),
        strides=_along(layer.strides),
        dilation_rate=_along(layer.dilation_rate),
        padding=_padding(layer),
        **_options(layer, "groups", "activation", "use_bias", "kernel_regularizer"),
    )
    return [
        *_zeros_before(layer),
        _made(made, layer, kernel.shape[2] * layer.groups, kernel, layer.bias),
    ]


def _grouped(layer: Layer, kernel: Array, bias: Any, **options: Any) -> Layer:
    """A depthwise convolution, of strides that Keras's own does not have."""
    channels, multiplier = kernel.shape[2:]
    made = _layers.Conv2D(
        channels * multiplier,
        _along(layer.kernel_size),
        strides=_along(layer.strides),
        dilation_rate=_along(layer.dilation_rate),
        padding=_padding(layer),
        groups=channels,
        use_bias=bias is not None,
        kernel_regularizer=layer.depthwise_regularizer,
        dtype=layer.dtype_policy,
        **options,
    )
    grouped = kernel.reshape(*kernel.shape[:2], 1, channels * multiplier)
    return _made(made, layer, channels, grouped, bias)


def _depthwise(layer: Layer) -> list[Layer]:
    bias = layer.bias if layer.use_bias else None
    return [_grouped(layer, _kernel(layer.kernel), bias, activation=layer.activation)]


def _separable(layer: Layer) -> list[Layer]:
    kernel = _kernel(layer.depthwise_kernel)
    pointwise = _layers.Conv2D(
        layer.filters,
        1,
        activation=layer.activation,
        use_bias=layer.use_bias,
        kernel_regularizer=layer.pointwise_regularizer,
        dtype=layer.dtype_policy,
    )
    weights = _kernel(layer.pointwise_kernel), layer.bias if layer.use_bias else None
    inner = int(np.prod(kernel.shape[2:]))
    depthwise = _grouped(layer, kernel, None)
    return [*_zeros_before(layer), depthwise, _made(pointwise, layer, inner, *weights)]


def _dense(layer: Layer) -> list[Layer]:
    kernel = ops.convert_to_numpy(layer.kernel)[None, None]
    options = _options(layer, "activation", "use_bias", "kernel_regularizer")
    made = _layers.Conv2D(layer.units, 1, **options)
    return [_made(made, layer, kernel.shape[2], kernel, layer.bias)]


def _batch_norm(layer: Layer) -> list[Layer]:
    if layer.axis not in (-1, 2):
        return [layer]  # which is refused
    made = copy_layer(layer, axis=-1)
    made.build((None, None, None, layer.moving_mean.shape[0]))
    copy_state(layer, made)
    return [made]


def _pooling(kind: type[Layer]) -> Any:
    return lambda layer: [
        kind(
            _along(layer.pool_size),
            _along(layer.strides),
            **_options(layer, "padding"),
        )
    ]


def _pooled(kind: type[Layer]) -> Any:
    return lambda layer: [kind(**_options(layer, "keepdims"))]


def _sides(kind: type[Layer], name: str) -> Any:
    return lambda layer: [kind(((0, 0), tuple(getattr(layer, name))), **_options(layer))]


def _concatenation(layer: Layer) -> list[Layer]:
    return [copy_layer(layer, axis=layer.axis + (layer.axis > 0))]


_POOLED = (_layers.GlobalAveragePooling2D, _layers.GlobalMaxPooling2D)
# Layers of lines: `change(layer)` returns those of images that do the same.
_CHANGES: dict[type, Any] = {
    _layers.AveragePooling1D: _pooling(_layers.AveragePooling2D),
    _layers.BatchNormalization: _batch_norm,
    _layers.Concatenate: _concatenation,
    _layers.Conv1D: _convolution,
    _layers.Cropping1D: _sides(_layers.Cropping2D, "cropping"),
    _layers.Dense: _dense,
    _layers.DepthwiseConv1D: _depthwise,
    _layers.GlobalAveragePooling1D: _pooled(_layers.GlobalAveragePooling2D),
    _layers.GlobalMaxPooling1D: _pooled(_layers.GlobalMaxPooling2D),
    _layers.MaxPooling1D: _pooling(_layers.MaxPooling2D),
    _layers.SeparableConv1D: _separable,
    _layers.SpatialDropout1D: lambda layer: [
        _layers.SpatialDropout2D(layer.rate, **_options(layer))
    ],
    _layers.UpSampling1D: lambda layer: [
        _layers.UpSampling2D(_along(layer.size), **_options(layer))
    ],
    _layers.ZeroPadding1D: _sides(_layers.ZeroPadding2D, "padding"),
}

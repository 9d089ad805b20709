"""Layers of each channel on its own: as parts of convolutions, or as 1x1 depthwise ones."""

import dataclasses
from collections.abc import Collection

import numpy as np

from repq_tf.graphs import Node, Tensor, copy_layer, copy_state, free_name
from repq_tf.keras_api import LEGACY, Array, Layer, Shape, keras, ops
from repq_tf.layers.stock import STOCK, StockConvolution, scale_batch_norm
from repq_tf.quantization.operators import activation_name

_layers = keras.layers


def separable(node: Node, taken: Collection[str]) -> list[Node]:
    """A separable convolution as a depthwise and a 1x1 one, which has its name."""
    layer, policy = node.layer, node.layer.dtype_policy
    depthwise = _layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        name=free_name(f"{node.name}_depthwise", taken),
        dtype=policy,
    )
    pointwise = _layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        activation=layer.activation,
        data_format=layer.data_format,
        kernel_regularizer=layer.pointwise_regularizer,
        name=node.name,
        dtype=policy,
    )
    channels, multiplier = layer.depthwise_kernel.shape[2:]
    depthwise.build((None, None, None, channels))
    pointwise.build((None, None, None, channels * multiplier))
    weights = [layer.pointwise_kernel, *([layer.bias] if layer.use_bias else [])]
    depthwise.set_weights([ops.convert_to_numpy(layer.depthwise_kernel)])
    pointwise.set_weights([ops.convert_to_numpy(weight) for weight in weights])
    depthwise.trainable = pointwise.trainable = layer.trainable
    return [
        dataclasses.replace(node, name=depthwise.name, layer=depthwise),
        dataclasses.replace(node, layer=pointwise, args=(Tensor(depthwise.name),), kwargs={}),
    ]


def map_constants(node: Node) -> tuple[Array, Array] | None:
    """`(scale, offset)` of a Rescaling or Normalization, `(channels,)` each.

    None where they are not the same at all pixels.
    """
    layer = node.layer
    shape = _source_shape(node)
    if isinstance(layer, _layers.Rescaling):
        scale, offset = layer.scale, layer.offset
    else:
        mean, deviation = _moments(layer)
        scale, offset = 1 / deviation, -mean / deviation
    arrays = [np.asarray(ops.convert_to_numpy(v), np.float64) for v in (scale, offset)]
    if any(array.size not in (1, shape[-1]) for array in arrays):
        return None
    scale, offset = (np.broadcast_to(array.ravel(), shape[-1:]) for array in arrays)
    return scale, offset


def _moments(layer: Layer) -> tuple[Array, Array]:
    """Mean and deviation of a Normalization, as it divides by it."""
    mean, variance = (
        np.asarray(ops.convert_to_numpy(value), np.float64)
        for value in (layer.mean, layer.variance)
    )
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon() if not LEGACY else 1e-7)
    return (mean * deviation, 1 / deviation) if layer.invert else (mean, deviation)


def mapped_layer(layer: Layer, scale: Array, offset: Array) -> Layer | None:
    """A copy of a convolution, dense layer or batch norm, with a map by constants behind it.

    Returns:
        The copy; None where the layer cannot hold the map.
    """
    if isinstance(layer, _layers.BatchNormalization):
        copy = copy_layer(layer, center=True, scale=True)
        copy.build(_built_shape(layer))
        _set_batch_norm(copy, layer, scale, offset)
        return copy
    if type(layer) not in STOCK or activation_name(layer) != "linear":
        return None
    copy = copy_layer(layer, use_bias=layer.use_bias or bool(offset.any()))
    copy.build_from_config(layer.get_build_config())
    if copy.use_bias == layer.use_bias:
        copy_state(layer, copy)
    else:
        copy.set_weights([*layer.get_weights(), np.zeros(scale.shape)])
        copy.trainable = layer.trainable
    convolution = StockConvolution(copy)
    convolution.scale_outputs(scale)
    convolution.shift(offset.astype(np.float32))
    return copy


def _set_batch_norm(copy: Layer, layer: Layer, scale: Array, offset: Array) -> None:
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        if getattr(layer, name, None) is not None:
            getattr(copy, name).assign(ops.convert_to_numpy(getattr(layer, name)))
    scale_batch_norm(copy, scale)
    copy.beta.assign(ops.convert_to_numpy(copy.beta) + offset)
    copy.trainable = layer.trainable


def _built_shape(layer: Layer) -> Shape:
    (channels,) = layer.moving_mean.shape
    return (*(None for _ in range(layer.input_spec.ndim - 1)), channels)


def batch_norm_alone(node: Node, taken: Collection[str]) -> list[Node]:
    """A batch norm that no convolution can take: behind a depthwise one whose weights are 1.

    That is exact at any number of bits, and frozen, since the batch norm scales, too.
    """
    layer = node.layer
    (channels,) = layer.moving_mean.shape
    ones = _depthwise(node, np.ones(channels), None)
    image = copy_layer(layer, axis=-1)
    image.build((None, None, None, channels))
    copy_state(layer, image)
    name = free_name(f"{node.name}_norm", taken)
    norm = dataclasses.replace(
        node, name=name, layer=image, args=(Tensor(node.name),), kwargs={}
    )
    return _as_image(node, [ones, norm], node.layer.input_spec.ndim, taken)


def map_alone(node: Node, scale: Array, offset: Array, taken: Collection[str]) -> list[Node]:
    """A map by constants that no convolution before it can take, as one that is frozen."""
    return _as_image(node, [_depthwise(node, scale, offset)], len(_source_shape(node)), taken)


def _depthwise(node: Node, scale: Array, offset: Array | None) -> Node:
    layer = _layers.DepthwiseConv2D(
        1, use_bias=offset is not None, name=node.name, dtype=node.layer.dtype_policy
    )
    layer.build((None, None, None, len(scale)))
    weights = [scale.reshape(1, 1, -1, 1), *([] if offset is None else [offset])]
    layer.set_weights([weight.astype(np.float32) for weight in weights])
    layer.trainable = False
    # Without what batch norms are called with beside it: a mask.
    return dataclasses.replace(node, layer=layer, args=(node.inputs[0],), kwargs={})


def _as_image(node: Node, parts: list[Node], rank: int, taken: Collection[str]) -> list[Node]:
    """Nodes that compute on images, of features of any rank."""
    if rank == 4:
        return parts
    if rank != 2:
        return [node]  # which is refused
    channels = int(node.source_shapes[0][-1]) if node.source_shapes else None
    if channels is None:
        channels = int(node.layer.input.shape[-1])
    policy = node.layer.dtype_policy
    image = _layers.Reshape(
        (1, 1, channels), name=free_name(f"{node.name}_image", taken), dtype=policy
    )
    flat = _layers.Reshape(
        (channels,), name=free_name(f"{node.name}_flat", taken), dtype=policy
    )
    first = dataclasses.replace(parts[0], args=(Tensor(image.name),), kwargs={})
    return [
        dataclasses.replace(
            node, name=image.name, layer=image, args=(node.inputs[0],), kwargs={}
        ),
        *[first, *parts[1:]],
        Node(flat.name, flat, (Tensor(parts[-1].name),)),
    ]


def _source_shape(node: Node) -> Shape:
    """The shape of what a node reads, with the batch."""
    return node.source_shapes[0] if node.source_shapes else tuple(node.layer.input.shape)

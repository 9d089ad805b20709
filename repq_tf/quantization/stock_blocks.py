"""Stock layers as the blocks that they become when they are quantized."""

import numpy as np

from repq_tf.keras_api import keras, ops
from repq_tf.layers import ConvBlock, ConvBNBlock, DenseBlock
from repq_tf.layers.stock import stock_kernel, stock_options


def stock_block(layer, norm=None):
    """The block class and configuration of a stock convolution or dense layer.

    Args:
        layer: a built Conv2D, DepthwiseConv2D or Dense.
        norm: the BatchNormalization behind it, if there is one.
    """
    if not isinstance(layer, keras.layers.Dense):
        config = {**stock_options(layer, norm), "use_bias": layer.use_bias}
        return (ConvBlock if norm is None else ConvBNBlock), config
    if norm is not None:
        raise ValueError(
            f"layer {norm.name!r} (BatchNormalization): after a Dense layer it "
            "cannot be quantized; fold it into the Dense layer first"
        )
    return DenseBlock, {
        "dtype": layer.dtype_policy,
        "use_bias": layer.use_bias,
        "kernel_regularizer": layer.kernel_regularizer,
        "filters": layer.units,
    }


def copy_stock(layer, norm, block):
    """Copies the weights of stock layers, and what is frozen of them, into their block."""
    convolution = block.inner
    kernel = stock_kernel(layer)
    convolution.kernel.assign(np.reshape(kernel, convolution.kernel.shape))
    if layer.use_bias:
        assign([convolution.bias], [layer.bias])
    if norm is not None:
        root = block.expression
        if norm.scale:
            assign([root.gamma], [norm.gamma])
        if norm.center:
            assign([root.beta], [norm.beta])
        statistics = root.statistics
        assign([statistics.moving_mean], [norm.moving_mean])
        assign([statistics.moving_variance], [norm.moving_variance])
    block.trainable = layer.trainable or (norm is not None and norm.trainable)
    if norm is not None:
        block.expression.trainable = norm.trainable
    block.inner.trainable = layer.trainable


def assign(targets, sources):
    """Assigns variables to variables."""
    for target, source in zip(targets, sources, strict=True):
        # Through NumPy: JAX would share the array, and training gives it away.
        target.assign(ops.convert_to_numpy(source))

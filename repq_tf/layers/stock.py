"""Stock Keras convolutions as blocks: their options and kernels in our terms."""

import numpy as np

from repq_tf.keras_api import LEGACY, keras, ops


def stock_options(layer, batch_norm=None):
    """The options of `ReparamConv` that a stock convolution has, but for its name.

    Args:
        layer: a built Conv2D or DepthwiseConv2D.
        batch_norm: the BatchNormalization behind it, if there is one.
    """
    options = {
        "kernel_size": tuple(layer.kernel_size),
        "strides": tuple(layer.strides),
        "padding": layer.padding,
        "activation": layer.activation,
        "dtype": layer.dtype_policy,
    }
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        channels, multiplier = _variable(layer).shape[2:]
        options.update(filters=channels * multiplier, groups=channels)
        options["kernel_regularizer"] = layer.depthwise_regularizer
    else:
        options.update(filters=layer.filters, groups=layer.groups)
        options["kernel_regularizer"] = layer.kernel_regularizer
    if batch_norm is not None:
        options.update(epsilon=batch_norm.epsilon, momentum=batch_norm.momentum)
    return options


def stock_kernel(layer):
    """The kernel `(kh, kw, in_channels / groups, out_channels)`, a NumPy array."""
    kernel = ops.convert_to_numpy(_variable(layer))
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return np.reshape(kernel, (*kernel.shape[:2], 1, -1))
    return kernel


def normalized_axis(layer):
    """The one axis of a BatchNormalization; None if it has several, as tf_keras's may."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return axes[0] if len(axes) == 1 else None


def _variable(layer):
    if LEGACY and isinstance(layer, keras.layers.DepthwiseConv2D):
        return layer.depthwise_kernel
    return layer.kernel


# What blocks have no equivalent of.
_EXTRAS = (
    "activity_regularizer beta_constraint beta_regularizer bias_constraint bias_regularizer "
    "depthwise_constraint gamma_constraint gamma_regularizer kernel_constraint"
).split()


def extras(layer):
    """The constraints and regularizers of a stock layer that its block would not have."""
    return [name for name in _EXTRAS if getattr(layer, name, None) is not None]

"""What every classification network has: checked arguments, a feature map, logits."""

import inspect
import math
from numbers import Integral, Real

from repq_tf.keras_api import keras
from repq_tf.layers import ReparamConv
from repq_tf.models.registry import register

# What a network decides for its blocks; every other option of a block is the user's.
_DECIDED = {
    *("self", "filters", "kernel_size", "strides", "padding", "groups", "activation"),
    *("options", "kwargs"),
}

_DOCUMENTATION = """{summary}

    Args:
        classes: number of outputs.
        input_shape: `(height, width, channels)` of the images.
        width: what every number of channels is multiplied by; the products are rounded
            to multiples of 8.
        **block_options: passed to every block, such as `bn_statistics`, `synchronized`,
            `merged` or `kernel_initializer`; what only `{block}` takes, to those alone.

    Returns:
        A Functional `keras.Model` from images to logits.

    Example:
        >>> model = repq_tf.models.{name}(classes=10, input_shape=(32, 32, 3))
    """


def classifier(name, summary, block, features, plain=None):
    """Makes and registers the function that builds a classification network.

    Args:
        name: name of the function and of its models.
        summary: its documentation, without the arguments.
        block: the class of its blocks.
        features: `features(images, width, block, options)` returns the last feature map;
            `options` are the user's, for the block.
        plain: name of the plain twin; None if the network is plain itself.

    Returns:
        The function: `name(classes, input_shape, width, **block_options)`.
    """

    def build(classes=1000, input_shape=(224, 224, 3), width=1.0, **block_options):
        classes = _whole(classes, "classes")
        input_shape = _check_input_shape(input_shape)
        _check_width(width)
        _check_block_options(name, block, block_options)
        images = keras.Input(input_shape, name="image")
        x = features(images, width, block, block_options)
        x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
        logits = keras.layers.Dense(classes, kernel_initializer=torch_uniform(), name="logits")(
            x
        )
        return keras.Model(images, logits, name=name)

    build.__name__ = build.__qualname__ = name
    build.__module__ = "repq_tf.models"
    build.__doc__ = _DOCUMENTATION.format(summary=summary, name=name, block=block.__name__)
    return register(build, plain)


def scale_channels(channels, width):
    """Returns `channels * width` rounded to a multiple of 8, at least 8."""
    return max(8, 8 * math.floor(channels * width / 8 + 0.5))


def common_options(options):
    """Returns those of the options that every block takes, not only one class of them."""
    common = _option_names(ReparamConv)
    return {name: value for name, value in options.items() if name in common}


def torch_uniform():
    """Returns PyTorch's default initializer of kernels: U(-1, 1) / sqrt(fan_in)."""
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def _option_names(block):
    """The options of a class of blocks that a network leaves to its user."""
    names = set()
    for ancestor in inspect.getmro(block):
        if issubclass(ancestor, ReparamConv):
            names.update(inspect.signature(ancestor.__init__).parameters)
    return names - _DECIDED


def _check_block_options(name, block, options):
    allowed = _option_names(block)
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(
            f"block_options of {name} must be among: {', '.join(sorted(allowed))}. "
            f"Received: {', '.join(unknown)}"
        )


def _whole(value, argument):
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{argument} must be a positive whole number. Received: {value!r}")
    return int(value)


def _check_input_shape(shape):
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if len(sizes) != 3:
        raise ValueError(
            "input_shape must be (height, width, channels) of one image, without the batch. "
            f"Received: {shape!r}"
        )
    return tuple(_whole(size, f"each size of input_shape {sizes}") for size in sizes)


def _check_width(width):
    good = isinstance(width, Real) and not isinstance(width, bool) and math.isfinite(width)
    if not good or width <= 0:
        raise ValueError(f"width must be a positive number. Received: {width!r}")

"""Keras's own convolutions and dense layers in our terms: options, kernels, equal blocks."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from repq_tf.branches import NumpyReading
from repq_tf.keras_api import LEGACY, Array, Config, Layer, Variable, keras, ops
from repq_tf.kernels import AffineKernel
from repq_tf.layers.blocks.plain import ConvBlock, ConvBNBlock, DenseBlock, DenseBNBlock
from repq_tf.layers.blocks.transposed import ConvTransposeBlock, ConvTransposeBNBlock

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
STOCK = (*CONVOLUTIONS, keras.layers.Conv2DTranspose, keras.layers.Dense)
# Two convolutions each, a depthwise and a 1x1 one.
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
# Maps by constants, of each channel on its own.
MAPS = (keras.layers.Rescaling, keras.layers.Normalization)
_TRAINING_ONLY = (
    "ActivityRegularization AlphaDropout AugMix CutMix Dropout GaussianDropout GaussianNoise "
    "Identity MixUp RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter "
    "RandomContrast RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur "
    "RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization "
    "RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom "
    "SpatialDropout1D SpatialDropout2D"
).split()
# Layers that are the identity in inference, those of them that this Keras has.
TRAINING_ONLY = tuple(
    getattr(keras.layers, name) for name in _TRAINING_ONLY if hasattr(keras.layers, name)
)


def stock_options(layer: Layer, batch_norm: Layer | None = None) -> dict[str, Any]:
    """The options of `ReparamConv` that a stock convolution has, but for its name.

    Args:
        layer: a built Conv2D, DepthwiseConv2D or Conv2DTranspose.
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
        options.update(filters=layer.filters, groups=getattr(layer, "groups", 1))
        options["kernel_regularizer"] = layer.kernel_regularizer
    if isinstance(layer, keras.layers.Conv2DTranspose):
        options["upsampling"] = options.pop("strides")[0]
    if batch_norm is not None:
        options.update(epsilon=batch_norm.epsilon, momentum=batch_norm.momentum)
    return options


def stock_kernel(layer: Layer, part: str = "kernel") -> Array:
    """The kernel `(kh, kw, in_channels / groups, out_channels)`, a NumPy array.

    A dense layer's is `(in_channels, out_channels)`; one of lines has the height 1.

    Args:
        layer: a built stock layer with a kernel.
        part: of a layer with two, which one.
    """
    kernel = ops.convert_to_numpy(_variable(layer, part))
    if kernel.ndim == 3:
        kernel = kernel[None]
    if _is_depthwise(layer, part):
        return np.reshape(kernel, (*kernel.shape[:2], 1, -1))
    return mirrored(kernel) if isinstance(layer, keras.layers.Conv2DTranspose) else kernel


def mirrored(kernel: Array) -> Array:
    """The kernel of a Conv2DTranspose for the spread image; and one of that for Keras's layer.

    Args:
        kernel: `(kh, kw, filters, channels)`, or `(kh, kw, channels, filters)`.
    """
    return np.ascontiguousarray(kernel[::-1, ::-1].transpose(0, 1, 3, 2))


def normalized_axis(layer: Layer) -> int | None:
    """The one axis of a BatchNormalization; None if it has several, as tf_keras's may."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return axes[0] if len(axes) == 1 else None


def _is_depthwise(layer: Layer, part: str = "kernel") -> bool:
    return isinstance(layer, _DEPTHWISE) or part == "depthwise_kernel"


def _variable(layer: Layer, part: str = "kernel") -> Variable:
    if LEGACY and isinstance(layer, _DEPTHWISE):
        return layer.depthwise_kernel
    return getattr(layer, part)


def normalization(norm: Layer) -> tuple[Array, Array, Array]:
    """What a BatchNormalization is in inference, `(x - mean) gain + beta`, in float64.

    Args:
        norm: a built BatchNormalization.

    Returns:
        `(mean, gain, beta)`, `(channels,)` each.
    """
    mean, variance = _array(norm.moving_mean), _array(norm.moving_variance)
    gamma = _array(norm.gamma) if norm.scale else np.ones_like(mean)
    beta = _array(norm.beta) if norm.center else np.zeros_like(mean)
    return mean, gamma / np.sqrt(variance + norm.epsilon), beta


def _array(variable: Variable) -> Array:
    return np.asarray(ops.convert_to_numpy(variable), np.float64)


# What blocks have no equivalent of.
_EXTRAS = (
    "activity_regularizer beta_constraint beta_regularizer bias_constraint bias_regularizer "
    "depthwise_constraint gamma_constraint gamma_regularizer kernel_constraint"
).split()


def extras(layer: Layer) -> list[str]:
    """The constraints and regularizers of a stock layer that its block would not have."""
    return [name for name in _EXTRAS if getattr(layer, name, None) is not None]


def stock_block(layer: Layer, norm: Layer | None = None) -> tuple[type[ConvBlock], Config]:
    """The block class and configuration of a stock convolution or dense layer.

    Args:
        layer: a built layer of `STOCK`.
        norm: the BatchNormalization behind it, if there is one.
    """
    if isinstance(layer, keras.layers.Conv2DTranspose):
        config = {**stock_options(layer, norm), "use_bias": layer.use_bias}
        return (ConvTransposeBlock if norm is None else ConvTransposeBNBlock), config
    if not isinstance(layer, keras.layers.Dense):
        config = {
            **stock_options(layer, norm),
            "use_bias": layer.use_bias,
            "dilation_rate": tuple(layer.dilation_rate),
        }
        return (ConvBlock if norm is None else ConvBNBlock), config
    config = {
        "dtype": layer.dtype_policy,
        "use_bias": layer.use_bias,
        "kernel_regularizer": layer.kernel_regularizer,
        "filters": layer.units,
    }
    if norm is None:
        return DenseBlock, config
    return DenseBNBlock, {**config, "epsilon": norm.epsilon, "momentum": norm.momentum}


def copy_stock(layer: Layer, norm: Layer | None, block: ConvBlock) -> None:
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


class StockConvolution:
    """A stock convolution or dense layer that is scaled as a `Convolution` branch is.

    Args:
        layer: a built layer of `STOCK`, or one that is its like of lines.
        part: of a layer of `SEPARABLE`, its "depthwise_kernel" or its "pointwise_kernel", to
            which the bias belongs.
    """

    def __init__(self, layer: Layer, part: str = "kernel") -> None:
        self.layer, self._part = layer, part
        biased = layer.use_bias and part != "depthwise_kernel"
        self.bias = layer.bias if biased else None

    def merge(self, reading: NumpyReading | None = None) -> AffineKernel:
        """Its `AffineKernel` in float64."""
        reading = reading or NumpyReading()
        kernel = reading.constant(stock_kernel(self.layer, self._part))
        if kernel.ndim == 2:
            kernel = kernel[None, None]
        bias = np.zeros(kernel.shape[3]) if self.bias is None else reading.value(self.bias)
        if _is_depthwise(self.layer, self._part):
            return AffineKernel(kernel, bias, _variable(self.layer, self._part).shape[-2])
        return AffineKernel(kernel, bias, getattr(self.layer, "groups", 1))

    def scale_inputs(self, gain: Array) -> None:
        """Multiplies the kernel so that the inputs count as multiplied by `gain`."""
        self._assign(self.merge().scale_inputs(gain))

    def scale_outputs(self, gain: Array) -> None:
        """Multiplies the kernel and the bias."""
        self._assign(self.merge().scale(gain))

    def shift(self, offset: Array) -> bool:
        """Adds to the bias; returns whether there is one."""
        if self.bias is None:
            return False
        self.bias.assign(self.bias + offset)
        return True

    def _assign(self, affine: AffineKernel) -> None:
        kernel, values = _variable(self.layer, self._part), affine.kernel
        if isinstance(self.layer, keras.layers.Conv2DTranspose):
            values = mirrored(values)
        kernel.assign(np.reshape(values, kernel.shape))
        if self.bias is not None:
            self.bias.assign(affine.bias)


def scale_batch_norm(layer: Layer, gain: Array) -> None:
    """Multiplies the outputs of a BatchNormalization, which has a gamma, by `(channels,)`."""
    for variable in (layer.gamma, layer.beta):
        if variable is not None:
            variable.assign(NumpyReading().value(variable) * gain)


def assign(targets: Iterable[Variable], sources: Iterable[Variable]) -> None:
    """Assigns variables to variables."""
    for target, source in zip(targets, sources, strict=True):
        # Through NumPy: JAX would share the array, and training gives it away.
        target.assign(ops.convert_to_numpy(source))

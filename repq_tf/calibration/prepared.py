"""Layers made ready for many batches in inference: merged once, steps read once."""

import functools
import inspect

from repq_tf.branches import FeatureReading
from repq_tf.keras_api import ops
from repq_tf.layers import DenseBlock, Quantize, ReparamConv
from repq_tf.quantizers import quantize_levels
from repq_tf.windows import convolve


class MergedBlock:
    """A block as a convolution with its merged kernel.

    Args:
        block: a `ReparamConv`.
        quantized: whether the kernel is quantized, if the block has a quantizer.
    """

    def __init__(self, block, quantized=True):
        self._block = block
        self.affine = block.inner.merge()
        self._kernel = self.affine.kernel
        if quantized and block.weight_quantizer is not None:
            self._kernel = block.weight_quantizer(self._kernel)

    def convolution(self, x):
        """The convolution of a batch with the kernel and its bias, without a root."""
        r = feature_reading(self._block, x)
        y = convolve(r.x, self._kernel, self.affine.groups, r.strides, r.window)
        return y + ops.cast(self.affine.bias, y.dtype) if self.affine.has_bias else y

    def finish(self, y, root):
        """What a batch norm at the root, or none, and the activation make of it."""
        y = y if root is None else root.normalize(y, False)
        y = self._block.activation(y)
        return ops.squeeze(y, (1, 2)) if isinstance(self._block, DenseBlock) else y


def feature_reading(block, x):
    """The `FeatureReading` of a block's input, in the dtype of its variables."""
    x = ops.cast(x, block.variable_dtype)
    if isinstance(block, DenseBlock):
        x = ops.expand_dims(x, (1, 2))
    return FeatureReading(x, block.window(x.shape[1:3]), block.strides)


def prepare(layer):
    """Returns `run(args, kwargs)`, the outputs of a layer in inference, a tuple.

    Quantized layers round as in training, whose arithmetic costs less than the integer
    runtime's and differs from it in the last place.
    """
    if isinstance(layer, ReparamConv) and layer.uses_merged_kernel:
        return _prepare_block(layer)
    if isinstance(layer, Quantize):
        step, quantizer = layer.step, layer.activation_quantizer

        def run(args, kwargs):
            x = ops.cast(layer.values(*args), step.dtype)
            return quantize_levels(x, step, quantizer.low, quantizer.high) * step, step

        return run
    return functools.partial(call, layer)


def _prepare_block(block):
    merged = MergedBlock(block)

    def run(args, kwargs):
        y = merged.finish(merged.convolution(args[0]), block.root)
        return (y,) if len(args) == 1 else (y, ops.broadcast_to(args[1], (block.filters,)))

    return run


def positional(layer, args, kwargs):
    """The arguments of a call of our layers, with those by name where `call` has them."""
    if not isinstance(layer, ReparamConv | Quantize):
        return args, kwargs
    bound = inspect.signature(layer.call).bind(*args, **kwargs)
    return bound.args, bound.kwargs


def call(layer, args, kwargs):
    """The outputs of a layer in inference, a tuple."""
    if _takes_training(type(layer)):
        kwargs = {**kwargs, "training": False}
    result = layer(*args, **kwargs)
    return tuple(result) if isinstance(result, tuple | list) else (result,)


@functools.cache
def _takes_training(kind):
    return "training" in inspect.signature(kind.call).parameters

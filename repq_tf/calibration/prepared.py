"""Layers made ready for many batches in inference: merged once, steps read once."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from repq_tf.branches import BatchNorm, FeatureReading
from repq_tf.graphs import OperationLayer
from repq_tf.keras_api import Array, Layer, Tensor, ops
from repq_tf.layers import DenseBlock, Quantize, ReparamConv
from repq_tf.windows import convolve

# A layer as a function of the arguments of its call, which returns a tuple.
Run: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]]


class MergedBlock:
    """A block as a convolution, an affine map of each channel and an activation.

    Args:
        block: a `ReparamConv`.
        root: the batch norm behind the convolution, or None.
        quantized: whether the kernel is quantized, if the block has a quantizer.

    Attributes:
        kernel: the merged kernel.
        bias: that of the convolution, `(channels,)`.
        offset: what is added behind the gain, `(channels,)`.
    """

    def __init__(
        self, block: ReparamConv, root: BatchNorm | None, quantized: bool = True
    ) -> None:
        self._block = block
        affine = block.inner.merge()
        self.kernel, self._groups, self.bias = affine.kernel, affine.groups, affine.bias
        if quantized and block.weight_quantizer is not None:
            self.kernel = block.weight_quantizer(self.kernel)
        self._gain, self.offset = None, self.bias
        if root is not None:
            self._gain, shift = root.gain_and_shift()
            self.offset = shift + self.bias * self._gain

    @property
    def gain(self) -> Any:
        """What the convolution without its bias is multiplied by, `(channels,)` or `()`."""
        return np.float32(1) if self._gain is None else self._gain

    def convolution(self, x: Tensor) -> Tensor:
        """The convolution of a batch, without its bias."""
        return self._convolve(x, self.kernel)

    def finish(self, y: Tensor) -> Tensor:
        """What the affine map and the activation make of a convolution."""
        return self._finish((y if self._gain is None else y * self._gain) + self.offset)

    def finish_values(self, y: Tensor, channels: Array) -> Tensor:
        """The same for single values, each of a given channel."""
        y = y if self._gain is None else y * ops.take(self._gain, channels)
        return self._block.activation(y + ops.take(self.offset, channels))

    def __call__(self, x: Tensor) -> Tensor:
        """All of it, the gain standing in the kernel."""
        return self._finish(self._convolve(x, self._scaled_kernel) + self.offset)

    @functools.cached_property
    def _scaled_kernel(self) -> Tensor:
        return self.kernel if self._gain is None else self.kernel * self._gain

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        r = feature_reading(self._block, x)
        return convolve(r.x, kernel, self._groups, r.strides, r.window)

    def _finish(self, y: Tensor) -> Tensor:
        y = self._block.activation(y)
        return ops.squeeze(y, (1, 2)) if isinstance(self._block, DenseBlock) else y


def feature_reading(block: ReparamConv, x: Tensor) -> FeatureReading:
    """The `FeatureReading` of a block's input, in the dtype of its variables."""
    x = ops.cast(x, block.variable_dtype)
    if isinstance(block, DenseBlock):
        x = ops.expand_dims(x, (1, 2))
    x = block.spread(x)
    return FeatureReading(x, block.window(x.shape[1:3]), block.strides)


def prepare(layer: Layer) -> Run:
    """Returns `run(args, kwargs)`, the outputs of a layer in inference, a tuple."""
    if not (isinstance(layer, ReparamConv) and layer.uses_merged_kernel):
        return functools.partial(call, layer)
    return _run_merged(layer, MergedBlock(layer, layer.root))


def prepare_float(layer: Layer, merged: MergedBlock | None = None) -> Run:
    """Returns the same with the layer's quantizers switched off.

    Args:
        layer: a layer of a quantized model.
        merged: what a block is in floating point; default: itself, its kernel not rounded.
    """
    if isinstance(layer, ReparamConv):
        if merged is None and layer.weight_quantizer is None:
            return prepare(layer)
        return _run_merged(layer, merged or MergedBlock(layer, layer.root, quantized=False))
    if isinstance(layer, Quantize):
        return lambda args, kwargs: (layer.values(*args), layer.step)
    if hasattr(layer, "values"):  # it computes on its input's grid
        return lambda args, kwargs: (layer.values(args[0]),)
    return functools.partial(call, layer)


def prepare_rounded(layer: Layer) -> Run:
    """Returns the same with a `Quantize` that rounds as in training.

    That costs less than the integer runtime's arithmetic and differs from it in the last
    place.
    """
    if not isinstance(layer, Quantize):
        return prepare(layer)
    quantizer, step = layer.activation_quantizer, layer.step
    return lambda args, kwargs: (quantizer.integers(layer.values(*args)) * step, step)


def _run_merged(block: ReparamConv, merged: MergedBlock) -> Run:
    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        y = merged(args[0])
        return (y,) if len(args) == 1 else (y, ops.broadcast_to(args[1], (block.filters,)))

    return run


def positional(
    layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of our layers, with those by name where `call` has them."""
    if not isinstance(layer, ReparamConv | Quantize):
        return args, kwargs
    kind: Any = type(layer)  # mypy: no class has a hash
    bound = _signature(kind).bind(layer, *args, **kwargs)
    return bound.args[1:], bound.kwargs


@functools.cache
def _signature(kind: Any) -> inspect.Signature:
    return inspect.signature(kind.call)


def call(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The outputs of a layer in inference, a tuple."""
    if isinstance(layer, OperationLayer):  # Keras's layers take tensors alone by position
        result = layer.operation(*args, **kwargs)
        return tuple(result) if isinstance(result, tuple | list) else (result,)
    if _takes_training(type(layer)):  # type: ignore[arg-type]  # mypy: no class has a hash
        kwargs = {**kwargs, "training": False}
    result = layer(*args, **kwargs)
    return tuple(result) if isinstance(result, tuple | list) else (result,)


@functools.cache
def _takes_training(kind: Any) -> bool:
    return "training" in inspect.signature(kind.call).parameters

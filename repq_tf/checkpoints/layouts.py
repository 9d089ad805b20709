"""Layouts: how PyTorch's tensors become our weights."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from repq_tf.keras_api import Array

_EPSILON = 1e-5  # of PyTorch's batch norms


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a weight comes from.

    Attributes:
        names: of the tensors it is made of, below the layer's own name.
        convert: `convert(shape, *tensors)` returns the weight, if the tensors fit the shape.
            Kernels have shape `(kh, kw, in_channels / groups, out_channels)`.
        inner: whether its channels are not those of the block's output.
    """

    names: tuple
    convert: Callable
    inner: bool = False


def part_by_part(channels: int, parts: int) -> Array:
    """Returns the order that makes parts 0 0 0 1 1 1 of those that take turns, 0 1 0 1 0 1."""
    return np.arange(channels).reshape(-1, parts).T.ravel()


def kernel(name: str, mirrored: bool = False, inner: bool = False, turns: int = 1) -> Source:
    """A kernel `(out, in / groups, kh, kw)`.

    Args:
        name: of the tensor.
        mirrored: whether it is to be turned by half a turn.
        inner: as in `Source`.
        turns: the number of groups, if their outputs take turns.
    """

    def convert(shape: Sequence[int], tensor: Array) -> Array:
        value = _kernel(shape, tensor)
        if value.shape != tuple(shape):
            return value
        value = value[..., part_by_part(shape[-1], turns)]
        return value[::-1, ::-1] if mirrored else value

    return Source((name,), convert, inner)


def vector(name: str, inner: bool = False) -> Source:
    """One number for each channel, whatever axes of size 1 there are."""

    def convert(shape: Sequence[int], tensor: Array) -> Array:
        return tensor.reshape(shape) if tensor.size == math.prod(shape) else tensor

    return Source((name,), convert, inner)


def row(name: str, index: int) -> Source:
    """A row of a matrix `(rows, channels)`."""

    def convert(shape: Sequence[int], tensor: Array) -> Array:
        return tensor[index] if tensor.ndim == 2 and len(tensor) > index else tensor

    return Source((name,), convert)


def folded(conv: str, bn: str) -> Source:
    """The kernel or the bias of a convolution that its batch norm is folded into."""
    vectors = (f"{bn}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))

    def convert(shape: Sequence[int], tensor: Array, *given: Array) -> Array:
        flat = [values.ravel() for values in given]
        for values in flat:
            if values.size != shape[-1]:
                return values
        gamma, beta, mean, variance = flat
        gain = gamma / np.sqrt(variance + _EPSILON)
        if len(shape) == 1:
            return beta - mean * gain
        value = _kernel(shape, tensor)
        return value * gain if value.shape == tuple(shape) else value

    return Source((f"{conv}.weight", *vectors), convert)


def total(*names: str) -> Source:
    """The sum of kernels."""
    return Source(names, lambda shape, *tensors: sum(_kernel(shape, t) for t in tensors))


def residual(*names: str) -> Source:
    """The sum of 1x1 kernels without the identity, which the block adds on its own."""

    def convert(shape: Sequence[int], *tensors: Array) -> Array:
        value: Array = np.asarray(sum(_kernel(shape, tensor) for tensor in tensors))
        inputs, outputs = shape[2:]
        if value.shape != tuple(shape):
            return value
        return value - np.tile(np.eye(inputs), outputs // inputs)

    return Source(names, convert)


def filtered(name: str, filters: str, ours: Array, mirrored: bool = False) -> Source:
    """A 1x1 kernel before one filter for each channel, where our filters are others.

    Theirs must be multiples of ours; the factors go into the kernel.

    Args:
        name: of the kernel.
        filters: name of their filters, `(channels, kh, kw)`.
        ours: our filters, `(kh, kw, channels)`.
        mirrored: whether their filters are to be turned by half a turn.
    """

    def convert(shape: Sequence[int], tensor: Array, theirs: Array) -> Array:
        value, theirs = _kernel(shape, tensor), np.transpose(theirs, (1, 2, 0))
        if value.shape != tuple(shape) or theirs.shape != ours.shape:
            return value if value.shape != tuple(shape) else theirs
        if mirrored:
            theirs = theirs[::-1, ::-1]
        factors = (theirs * ours).sum((0, 1)) / np.square(ours).sum((0, 1))
        if not np.allclose(theirs, factors * ours, atol=1e-5):
            raise ValueError(f"{filters}: these filters are no multiples of the block's own")
        return value * factors

    return Source((name, filters), convert)


def _kernel(shape: Sequence[int], tensor: Array) -> Array:
    """A kernel in our layout; Linear's are 1x1, and flat ones are in PyTorch's order."""
    if tensor.ndim == 1 and tensor.size == math.prod(shape):
        height, width, inputs, outputs = shape
        tensor = tensor.reshape(outputs, inputs, height, width)
    elif tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor

"""Convolution of features with a padding window, the one place that pads.

A *window* is a pair of `(before, after)` zeros for each spatial axis. A block pads
its input once for its full kernel size; a branch with a smaller kernel works on
the centred crop of that padded input. Cropping is arithmetic on the window
(`crop_window`; negative numbers cut pixels off), so that nothing is copied
unless a kernel really needs the zeros.
"""

import math
from typing import TypeAlias

from repq_tf.keras_api import Pair, Shape, Tensor, backend, ops, traced_for_xla
from repq_tf.kernels import centre_offset

Window: TypeAlias = tuple[Pair, ...]  # zeros before and after, for each spatial axis
VALID: Window = ((0, 0), (0, 0))


def same_window(kernel_size: Pair, strides: Pair, spatial: Shape) -> Window:
    """Keras's "same" window: `ceil(n / stride)` outputs, the odd zero at the end.

    Args:
        kernel_size: `(kh, kw)`.
        strides: `(sh, sw)`.
        spatial: input height and width; either may be None where the stride is 1.

    Raises:
        ValueError: a size is unknown on an axis with a stride above 1.
    """
    window = []
    for size, stride, length in zip(kernel_size, strides, spatial, strict=True):
        if stride == 1:
            total = size - 1
        elif length is None:
            raise ValueError(
                'padding="same" with strides above 1 needs a known input size; give the '
                f"input a size, or pad explicitly. Received: input size {tuple(spatial)}"
            )
        else:
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
        window.append((total // 2, total - total // 2))
    return tuple(window)


def crop_window(window: Window, outer: Pair, inner: Pair) -> Window:
    """The window of a kernel of size `inner` centred in one of size `outer`."""
    cropped = []
    for (before, after), big, small in zip(window, outer, inner, strict=True):
        offset = centre_offset(big, small)
        cropped.append((before - offset, after - (big - small - offset)))
    return tuple(cropped)


def convolved_size(spatial: Shape, window: Window, kernel_size: Pair, strides: Pair) -> Shape:
    """The pixels that a convolution makes, `(n + zeros - kernel) // stride + 1` on each axis.

    Args:
        spatial: input height and width; None stays None.
        window: zeros before and after, for each spatial axis.
        kernel_size: `(kh, kw)`.
        strides: `(sh, sw)`.
    """
    axes = zip(spatial, window, kernel_size, strides, strict=True)
    return tuple(
        None if length is None else (length + sum(zeros) - size) // stride + 1
        for length, zeros, size, stride in axes
    )


def crop(x: Tensor, window: Window) -> tuple[Tensor, Window]:
    """Cuts off the pixels of the negative sides of a window.

    Args:
        x: `(batch, height, width, channels)`.
        window: zeros before and after each spatial axis.

    Returns:
        The features, and what is left of the window: zeros alone.
    """
    zeros = tuple((max(before, 0), max(after, 0)) for before, after in window)
    if zeros == tuple(window):
        return x, zeros
    (top, bottom), (left, right) = ((max(-a, 0), max(-b, 0)) for a, b in window)
    height, width = ops.shape(x)[1:3]
    # Not `x[:, top:...]`, whose gradient TensorFlow writes pixel by pixel.
    size = (-1, height - top - bottom, width - left - right, -1)
    return ops.slice(x, (0, top, left, 0), size), zeros


def apply_window(x: Tensor, window: Window) -> Tensor:
    """Pads `x` `(batch, height, width, channels)` with zeros, or crops it."""
    x, zeros = crop(x, window)
    return x if zeros == VALID else ops.pad(x, ((0, 0), *zeros, (0, 0)))


def subsample(x: Tensor, strides: Pair) -> Tensor:
    """Every `strides`-th pixel: what a 1x1 convolution with strides reads."""
    if tuple(strides) == (1, 1):
        return x
    # The average of one pixel: exact, and several times as fast as a slice with steps, whose
    # gradient TensorFlow scatters pixel by pixel.
    return ops.average_pool(x, (1, 1), tuple(strides), "valid", data_format="channels_last")


def with_every(x: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """A batch, and every `distance`-th image of it, from the first on.

    Args:
        x: `(batch, height, width, channels)`.
        distance: at least 1.

    Returns:
        x, to be read in its place, and the images: the gradients of both meet here.
    """
    if distance == 1 or backend() != "tensorflow" or traced_for_xla():
        return x, x[::distance]
    import tensorflow as tf

    # Of a slice, the gradient is as large as the batch, mostly zeros, and is added to the
    # other as a whole; here a few images are added to it where it lies.
    @tf.custom_gradient
    def divide(x: Tensor) -> tuple:
        numbers = tf.range(0, tf.shape(x)[0], distance)

        def gradient(whole: Tensor, images: Tensor) -> Tensor:
            return tf.tensor_scatter_nd_add(whole, numbers[:, None], images)

        return (tf.identity(x), tf.gather(x, numbers)), gradient

    return divide(x)


def convolve(
    x: Tensor, kernel: Tensor, groups: int = 1, strides: Pair = (1, 1), window: Window = VALID
) -> Tensor:
    """Correlates features with a kernel.

    Args:
        x: `(batch, height, width, in_channels)`.
        kernel: `(kh, kw, in_channels / groups, out_channels)`; cast to x's dtype.
        groups: number of groups; `in_channels` makes it depthwise.
        strides: `(sh, sw)`.
        window: zeros before and after, for each spatial axis.

    Returns:
        `(batch, out_height, out_width, out_channels)` in x's dtype.
    """
    channels = x.shape[-1]
    if tuple(kernel.shape[:2]) == (1, 1) and tuple(strides) != (1, 1):
        # TensorFlow 2.21's oneDNN corrupts memory in the filter gradient of a 1x1 convolution
        # with strides and few channels. (Kernels of 1xk and kx1 are sound.)
        x, strides, window = subsample(apply_window(x, window), strides), (1, 1), VALID
    if 1 < groups == channels and strides[0] != strides[1]:
        # TensorFlow's depthwise convolution has one stride for both axes.
        common = math.gcd(*strides)
        x = apply_window(x, window)
        y = convolve(x, kernel, groups, (common, common))
        return subsample(y, (strides[0] // common, strides[1] // common))
    kernel = ops.cast(kernel, x.dtype)
    x, window = crop(x, window)
    options = {"strides": tuple(strides), "data_format": "channels_last"}
    size, spatial = kernel.shape[:2], x.shape[1:3]
    padding = "valid"
    if window != VALID:
        known = all(s == 1 or n is not None for s, n in zip(strides, spatial, strict=True))
        if known and window == same_window(size, strides, spatial):
            padding = "same"
        else:
            x = apply_window(x, window)
    if 1 < groups == channels:
        kernel = ops.reshape(kernel, (*size, channels, kernel.shape[3] // channels))
        return ops.depthwise_conv(x, kernel, padding=padding, **options)
    return ops.conv(x, kernel, padding=padding, **options)

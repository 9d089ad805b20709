"""Moments of convolved features: exact, and estimated from the input's own.

Merging a batch norm needs the mean and the variance of `X * child`. RepQ-BN convolves once
more to get them (arXiv 2311.05317, Algorithm 1); RepQ-BNEst estimates them (Eq. 5-6).
"""

from typing import Any

from repq_tf.branches.fused import Moments, can_fuse, fused_image_moments, fused_moments
from repq_tf.keras_api import Pair, Tensor, dtype_name, ops, replica_mean
from repq_tf.kernels import AffineKernel
from repq_tf.windows import VALID, Window, apply_window, convolve, subsample


def feature_moments(y: Tensor, synchronized: bool = True) -> Moments:
    """Mean and variance `(channels,)` of features over batch, height and width.

    They are computed in float32 at least. The variance is the biased one, over N: Keras's
    and the one that normalizes; PyTorch's moving variance is over N - 1. With
    `synchronized`, they are those of the global batch when replicas share it.
    """
    if can_fuse(y, synchronized):
        return fused_moments(y)
    y = wide(y)
    mean = _shared(ops.mean(y, axis=(0, 1, 2)), synchronized)
    return mean, _variance(y, mean, synchronized)


def image_moments(x: Tensor, synchronized: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Batch-mean image `(h, w, c)`, mean `(c,)` and variance `(c,)` of features.

    As `feature_moments`, of which the last two are.
    """
    if can_fuse(x, synchronized):
        return fused_image_moments(x)
    x = wide(x)
    image = _shared(ops.mean(x, axis=0), synchronized)
    mean = ops.mean(image, axis=(0, 1))
    return image, mean, _variance(x, mean, synchronized)


def _variance(y: Tensor, mean: Tensor, synchronized: bool) -> Tensor:
    return _shared(ops.mean(ops.square(y - mean), axis=(0, 1, 2)), synchronized)


def _shared(moment: Tensor, synchronized: bool) -> Tensor:
    return replica_mean(moment) if synchronized else moment


def wide(x: Tensor) -> Tensor:
    """Returns features in float32 at least."""
    return ops.cast(x, "float64" if dtype_name(x) == "float64" else "float32")


def exact_moments(
    x: Tensor,
    affine: AffineKernel,
    strides: Pair = (1, 1),
    window: Window = VALID,
    synchronized: bool = True,
) -> Moments:
    """Exact moments of `affine(x)`: RepQ-BN, Algorithm 1, lines 1-2.

    As printed, line 1 convolves the unquantized X. A quantized block has Q(X) alone, and
    these are its moments: those of the features that the deployed network has. The kernel is
    unquantized in both.

    Args:
        x: features `(batch, height, width, in_channels)`.
        affine: an `AffineKernel`.
        strides: `(sh, sw)`.
        window: zeros around x (negative: cropped).
        synchronized: whether replicas share the moments.

    Returns:
        Mean and variance, `(out_channels,)` each.
    """
    if _is_scaling(affine):
        # An identity for one: no convolution is needed.
        gain = affine.kernel[0, 0, 0]
        mean, variance = feature_moments(
            subsample(apply_window(x, window), strides), synchronized
        )
        return mean * gain + affine.bias, variance * ops.square(gain)
    y = convolve(x, affine.kernel, affine.groups, strides, window)
    mean, variance = feature_moments(y, synchronized)
    return mean + affine.bias, variance


def _is_scaling(affine: AffineKernel) -> bool:
    """Whether a kernel only scales each channel."""
    channels = affine.in_channels
    return affine.size == (1, 1) and affine.groups == channels == affine.out_channels


def estimated_moments(
    reading: Any, affine: AffineKernel, literal: bool = False, synchronized: bool = True
) -> Moments:
    """Moments estimated from the input's own: RepQ-BNEst, no convolution of features.

    The variance is Eq. 6, `V_o = sum_i V[X_i] sum_{h,d} W[h,d,i,o]^2`: all covariances
    between channels and between taps are dropped. The mean is exact,
    `E_o = sum_{h,d,i} W[h,d,i,o] E[X_i at tap (h,d)]`, because the mean at each tap
    (which sees the padding and the strides) costs nothing more than the global mean.
    `literal=True` is the paper's Eq. 5, `E_o = sum_i E[X_i] sum_{h,d} W[h,d,i,o]`,
    which is off by 5-9 % of the output's deviation where there is padding.

    Args:
        reading: a `FeatureReading`.
        affine: the `AffineKernel` whose output is meant.
        literal: whether to use Eq. 5 as printed.
        synchronized: whether replicas share the moments.

    Returns:
        Mean and variance, `(out_channels,)` each.
    """
    if _is_scaling(affine) and not literal:
        # Of a single input value for each output, the estimate can be exact.
        return exact_moments(reading.x, affine, reading.strides, reading.window, synchronized)
    image, mean, variance = reading.input_moments(synchronized)
    taps = affine.size[0] * affine.size[1]
    squares = AffineKernel(ops.square(affine.kernel), affine.bias, affine.groups)
    if literal:
        response = affine.response(mean)
    else:
        rows, columns = (
            _tap_weights(ops.shape(image)[axis], affine.size[axis], reading, axis)
            for axis in range(2)
        )
        response = _response(affine, _tap_means(image, rows, columns))
    every_tap = ops.tile(ops.reshape(variance, (1, -1)), (taps, 1))
    return response + affine.bias, _response(squares, every_tap)


def _tap_means(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The means that taps read of an image: `(taps, channels)`.

    Products of matrices as they lie in memory; a sum over indices would turn them first.

    Args:
        image: `(height, width, channels)`.
        rows: `(kh, height)`, the share of outputs for which a tap reads a row.
        columns: `(kw, width)`.
    """
    height, width, channels = ops.shape(image)
    means = ops.matmul(rows, ops.reshape(image, (height, width * channels)))
    means = ops.reshape(means, (rows.shape[0], width, channels))
    return ops.reshape(ops.matmul(columns[None], means), (-1, channels))


def _response(affine: AffineKernel, inputs: Tensor) -> Tensor:
    """What a kernel makes, without bias, of an input for each of its taps.

    Args:
        affine: the kernel.
        inputs: `(taps, in_channels)`.

    Returns:
        `(out_channels,)`.
    """
    outputs = affine.out_channels
    if affine.groups == 1:
        kernel = ops.reshape(affine.kernel, (-1, outputs))
        return ops.matmul(ops.reshape(inputs, (1, -1)), kernel)[0]
    groups, each = affine.groups, affine.kernel.shape[2]
    inputs = ops.reshape(inputs, (-1, groups, each))
    kernel = ops.reshape(affine.kernel, (-1, each, groups, outputs // groups))
    return ops.reshape(ops.einsum("tigo,tgi->go", kernel, inputs), (-1,))


def _tap_weights(length: int, size: int, reading: Any, axis: int) -> Tensor:
    """`(size, length)`: the share of outputs for which tap t reads pixel y."""
    (before, after), stride = reading.window[axis], reading.strides[axis]
    count = (length + before + after - size) // stride + 1
    pixel = ops.arange(length, dtype="int32")[None, :]
    offset = pixel - ops.arange(size, dtype="int32")[:, None] + before
    hit = (offset % stride == 0) & (offset >= 0) & (offset < count * stride)
    dtype = dtype_name(wide(reading.x))
    return ops.cast(hit, dtype) / ops.cast(count, dtype)

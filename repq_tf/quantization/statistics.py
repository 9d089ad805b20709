"""Batch-norm statistics from images: re-estimation, constant channels.

Layer by layer, on the features as the layers before make them in inference.
"""

import numpy as np

from repq_tf.branches import FeatureReading, Reading, estimated_moments, exact_moments
from repq_tf.keras_api import keras, ops
from repq_tf.layers import DenseBlock, ReparamConv
from repq_tf.layers.stock import normalized_axis
from repq_tf.quantization.execution import as_batches, run_batches
from repq_tf.quantization.graph import read_graph

# A channel whose variance is this small a part of epsilon is a constant: what it adds to
# the normalized features is below 1 % of gamma.
_DEAD = 1e-4


def reestimate_batch_norm(model, data, batch_size=128):
    """Sets all moving statistics to the moments of the given images.

    Layer by layer, with quantizers as they are, so that every batch norm is given the
    moments of the features that it sees in inference. For blocks of repq_tf (float, merged
    or quantized; `bn_statistics="estimate"` by its estimate) and Keras's own
    BatchNormalization. Nothing else changes.

    Args:
        model: a Functional or Sequential Keras model.
        data: an array of images, or an iterable of batches; a few hundred images do.
        batch_size: used to cut an array.

    Example:
        >>> repq_tf.reestimate_batch_norm(model, images[:512])
    """
    graph = read_graph(model)

    def visit(node, calls):
        if isinstance(node.layer, ReparamConv):
            reestimate_block(node.layer, calls)
        elif isinstance(node.layer, keras.layers.BatchNormalization):
            mean, variance = combine([_axis_moments(node.layer, args[0]) for args, _ in calls])
            node.layer.moving_mean.assign(mean)
            node.layer.moving_variance.assign(variance)

    run_batches(graph, as_batches(data, model, batch_size), visit)


def _axis_moments(layer, x):
    x = ops.cast(x, "float32")
    axis = normalized_axis(layer) % x.ndim
    axes = tuple(k for k in range(x.ndim) if k != axis)
    return len(x), ops.mean(x, axis=axes), ops.var(x, axis=axes)


def reestimate_block(block, calls):
    """Re-estimates the moving statistics of one block on its inputs.

    Those that a quantized kernel was trained with as constants stay: another kernel would not
    suit the steps and weights that were learned for this one.
    """
    readings = feature_readings(block, calls)
    if block.weight_quantizer is not None and block.bn_statistics in ("restored", "running"):
        affine = block.inner.merge()
    else:
        # A block that runs its branches normalizes them exactly, whatever its mode.
        exact = not block.uses_merged_kernel
        affine = block.inner.merge(CalibrationReading(readings, exact=exact))
    if block.root is not None:
        reestimate_root(block, readings, affine)


def feature_readings(block, calls):
    """A `FeatureReading` of a block's input for each of its calls."""
    readings = []
    for args, _ in calls:
        x = ops.cast(args[0], "float32")
        if isinstance(block, DenseBlock):
            x = ops.expand_dims(x, (1, 2))
        readings.append(FeatureReading(x, block.window(x.shape[1:3]), block.strides))
    return readings


def reestimate_root(block, readings, affine):
    """Sets the statistics of the batch norm behind a block's convolution; returns them."""
    kernel = affine.kernel
    if block.weight_quantizer is not None:
        kernel = block.weight_quantizer(kernel)
    affine = type(affine)(kernel, affine.bias, affine.groups)
    moments = [(len(r.x), *exact_moments(r.x, affine, r.strides, r.window)) for r in readings]
    mean, variance = combine(moments)
    block.root.statistics.moving_mean.assign(mean)
    block.root.statistics.moving_variance.assign(variance)
    return mean, variance


def combine(moments):
    """Moments of all batches from `(count, mean, variance)` of each, in float64."""
    counts = np.asarray([count for count, _, _ in moments], np.float64)[:, None]
    means = np.stack([ops.convert_to_numpy(mean) for _, mean, _ in moments]).astype(np.float64)
    variances = np.stack([ops.convert_to_numpy(v) for _, _, v in moments]).astype(np.float64)
    share = counts / counts.sum()
    mean = (share * means).sum(axis=0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(axis=0)


class CalibrationReading(Reading):
    """The reading that sets the moving statistics of each batch norm as it is merged.

    Args:
        readings: a `FeatureReading` for each batch.
        neutralise: whether channels of (almost) no variance get gamma 0, which keeps the
            function: a constant channel is beta after normalization.
        keep_function: whether a batch norm with `estimate` gets gamma and beta such
            that it does with the estimated moments what it did with the exact ones.
        exact: whether moments are exact even with `estimate`.
    """

    def __init__(self, readings, neutralise=False, keep_function=False, exact=False):
        self.readings = readings
        self.neutralise = neutralise
        self.keep_function = keep_function
        self.exact = exact

    def inside(self, outer, inner):
        """The reading of a smaller kernel."""
        return self._derive([reading.inside(outer, inner) for reading in self.readings])

    def after(self, prefix, last):
        """The reading of a chain's link."""
        return self._derive([reading.after(prefix, last) for reading in self.readings])

    def _derive(self, readings):
        return type(self)(readings, self.neutralise, self.keep_function, self.exact)

    def moments(self, batch_norm, affine):
        """Measures, sets and returns the moving statistics."""
        statistics = batch_norm.statistics
        estimated = statistics.mode == "estimate" and not self.exact
        if not estimated or self.keep_function or self.neutralise:
            self._set(statistics, self._exact(affine))
        if self.neutralise:
            neutralise_dead_channels(batch_norm)
        if estimated:
            exact = batch_norm.gain_and_shift()
            self._set(statistics, self._estimated(statistics, affine))
            if self.keep_function:
                batch_norm.keep(*exact)
        return self.moving(statistics)

    def _set(self, statistics, moments):
        mean, variance = combine(moments)
        statistics.moving_mean.assign(mean)
        statistics.moving_variance.assign(variance)

    def _exact(self, affine):
        return [
            (len(r.x), *exact_moments(r.x, r.composed(affine), r.strides, r.window))
            for r in self.readings
        ]

    def _estimated(self, statistics, affine):
        return [
            (len(r.x), *estimated_moments(r, r.composed(affine), statistics.literal_estimate))
            for r in self.readings
        ]


def neutralise_dead_channels(batch_norm):
    """Gives channels whose moving variance is about 0 a gamma of 0 and a variance of 1.

    Such a channel is a constant, which a batch norm turns into beta; its gain
    `gamma / sqrt(epsilon)`, in the hundreds, would only spoil the merged kernel.
    """
    statistics = batch_norm.statistics
    variance = ops.convert_to_numpy(statistics.moving_variance)
    dead = variance < _DEAD * batch_norm.epsilon
    batch_norm.gamma.assign(np.where(dead, 0.0, ops.convert_to_numpy(batch_norm.gamma)))
    statistics.moving_variance.assign(np.where(dead, 1.0, variance))

"""Batch-norm statistics from images: re-estimation, matching, constant channels.

Layer by layer, on the features as the layers before make them in inference.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeAlias

import numpy as np

from repq_tf.arguments import positive
from repq_tf.branches import (
    BatchNorm,
    BatchNormStatistics,
    FeatureReading,
    Reading,
    estimated_moments,
    exact_moments,
)
from repq_tf.calibration.execution import Calls, fitting, run_layers
from repq_tf.calibration.images import store_images
from repq_tf.calibration.moments import Moments, average_moments
from repq_tf.calibration.prepared import feature_reading
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.graphs import Node, read_graph
from repq_tf.keras_api import Layer, Pair, Tensor, keras, ops
from repq_tf.kernels import AffineKernel
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import normalized_axis
from repq_tf.progress import Progress

# A channel whose variance is this small a part of epsilon is a constant: what it adds to
# the normalized features is below 1 % of gamma.
_DEAD = 1e-4
# Quantization changes a deviation by less, unless it has destroyed the channel.
_LARGEST_CHANGE = 2.0
# What makes a reading of another one.
Change: TypeAlias = Callable[[FeatureReading], FeatureReading]


def reestimate_batch_norm(
    model: keras.Model,
    data: Any,
    batch_size: int | None = None,
    calibration_images: int | None = 512,
    verbose: bool = True,
) -> None:
    """Sets all moving statistics to the moments of the given images.

    Layer by layer, with quantizers as they are, so that every batch norm is given the
    moments of the features that it sees in inference. For blocks of repq_tf (float, merged
    or quantized; `bn_statistics="estimate"` by its estimate) and Keras's own
    BatchNormalization. Nothing else changes.

    Args:
        model: a Functional or Sequential Keras model.
        data: images, as for `repq_tf.quantize`; a few hundred do.
        batch_size: of computing; by default as many as fit a quarter of a gigabyte.
        calibration_images: how many images to read at most; None reads all.
        verbose: whether to show a progress bar after two seconds.

    Example:
        >>> repq_tf.reestimate_batch_norm(model, images[:512])
    """
    graph = read_graph(model)

    def visit(node: Node, calls: Sequence[Calls]) -> None:
        if isinstance(node.layer, ReparamConv):
            reestimate_block(node.layer, calls)
        elif isinstance(node.layer, keras.layers.BatchNormalization):
            found = [Moments() for _ in calls]
            for moments, call in zip(found, calls, strict=True):
                for args, _ in call:
                    moments.add(*_axis_moments(node.layer, args[0]))
            moments = average_moments(found)
            node.layer.moving_mean.assign(moments.mean)
            node.layer.moving_variance.assign(moments.variance)

    size = fitting(graph) if batch_size is None else positive(batch_size, "batch_size")
    images, _ = store_images(data, model, size, calibration_images)
    warn_of_other_range(graph, images[0], "data")
    progress = Progress("re-estimating batch norms", len(graph.nodes), "layer", verbose)
    run_layers(graph, images, visit, progress)


def _axis_moments(layer: Layer, x: Tensor) -> tuple[int, Tensor, Tensor]:
    x = ops.cast(x, "float32")
    axis = normalized_axis(layer) % x.ndim
    axes = tuple(k for k in range(x.ndim) if k != axis)
    return len(x), ops.mean(x, axis=axes), ops.var(x, axis=axes)


class Readings:
    """A `FeatureReading` of a block's input for each of its calls, made when it is read.

    Args:
        block: the `ReparamConv`.
        calls: its `Calls`, one for each place where the model calls it.
    """

    def __init__(
        self, block: ReparamConv, calls: Sequence[Calls], changes: tuple[Change, ...] = ()
    ) -> None:
        self._block, self._calls, self._changes = block, calls, changes

    def __iter__(self) -> Iterator[FeatureReading]:
        for call in self._calls:
            for args, _ in call:
                reading = feature_reading(self._block, args[0])
                for change in self._changes:
                    reading = change(reading)
                yield reading

    @property
    def calls(self) -> list["Readings"]:
        """The readings of each place where the block is called."""
        return [Readings(self._block, [call], self._changes) for call in self._calls]

    def changed(self, change: Change) -> "Readings":
        """The readings that a function makes of these."""
        return Readings(self._block, self._calls, (*self._changes, change))

    def moments(self, *affines: AffineKernel) -> list[Moments]:
        """The exact `Moments` of the features convolved with each `AffineKernel`."""
        found = []
        for affine in affines:
            parts = [Moments() for _ in self._calls]
            for moments, readings in zip(parts, self.calls, strict=True):
                for r in readings:
                    one = exact_moments(r.x, r.composed(affine), r.strides, r.window)
                    moments.add(len(r.x), *one)
            found.append(average_moments(parts))
        return found

    def estimated(self, affine: AffineKernel, literal: bool) -> Moments:
        """Their estimate from the input's own moments."""
        parts = [Moments() for _ in self._calls]
        for moments, readings in zip(parts, self.calls, strict=True):
            for r in readings:
                moments.add(len(r.x), *estimated_moments(r, r.composed(affine), literal))
        return average_moments(parts)


def reestimate_block(block: ReparamConv, calls: Sequence[Calls]) -> None:
    """Re-estimates the moving statistics of one block on its inputs.

    Those that a quantized kernel was trained with as constants stay: another kernel would not
    suit the steps and weights that were learned for this one.
    """
    readings = Readings(block, calls)
    if block.weight_quantizer is not None and block.bn_statistics in ("restored", "running"):
        affine = block.inner.merge()
    else:
        # A block that runs its branches normalizes them exactly, whatever its mode.
        exact = not block.uses_merged_kernel
        affine = block.inner.merge(CalibrationReading(readings, exact))
    if block.root is not None:
        (moments,) = readings.moments(quantized_kernel(block, affine))
        set_moments(block.root.statistics, moments)


def quantized_kernel(block: ReparamConv, affine: AffineKernel) -> AffineKernel:
    """A block's `AffineKernel` as it convolves with it: quantized, if the block is."""
    if block.weight_quantizer is None:
        return affine
    return type(affine)(block.weight_quantizer(affine.kernel), affine.bias, affine.groups)


def set_moments(statistics: BatchNormStatistics, moments: Moments) -> None:
    """Makes moments the moving ones of a `BatchNormStatistics`."""
    statistics.moving_mean.assign(moments.mean)
    statistics.moving_variance.assign(moments.variance)


def match_moments(
    batch_norm: BatchNorm, real: Moments, kernel: Moments, quantized: Moments
) -> None:
    """Corrects a batch norm for what quantization did to the moments of what it normalizes.

    With the means `m_f` of the features in floating point and `m_q` of the quantized ones on
    the same images, the moving mean m and variance v become

        m' = m_q + (m - m_f) / rho,        sqrt(v' + epsilon) = sqrt(v + epsilon) / rho,

    with `rho = sqrt(v_w / v_q)` between 1/2 and 2, the ratio of the deviations that the same
    quantized input has behind the kernel as it is and behind the quantized one (1 for channels
    that are constant). So quantized features y are normalized as `m_f + rho (y - m_q)` was: the
    function that was learned is kept, and only the shift and the scale of quantization are
    undone; the moments of the sample never replace those of the population, as they do where
    batch norms are re-estimated (`reestimate_batch_norm`).

    The ratio to the float network's own deviation would count clipped outliers too, which
    are few and no reason to enlarge all other values: MobileOne-S0 loses 3.6 points with
    it at 8 bits, and 2.4 with this one.

    Args:
        batch_norm: the `BatchNorm`, with the moving statistics of the float network.
        real: `Moments` of the features in the float network.
        kernel: those of the kernel in floating point on quantized features.
        quantized: those of the quantized kernel on them.
    """
    statistics, epsilon = batch_norm.statistics, batch_norm.epsilon
    mean, variance = (
        np.asarray(ops.convert_to_numpy(value), np.float64)
        for value in (statistics.moving_mean, statistics.moving_variance)
    )
    least = np.minimum(kernel.variance, quantized.variance)
    alive = least > _DEAD * epsilon
    ratio = np.divide(kernel.variance, quantized.variance, out=np.ones_like(least), where=alive)
    rho = np.clip(np.sqrt(ratio), 1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
    before = ops.convert_to_numpy(batch_norm.gain_and_shift()[0])
    corrected = (variance + epsilon) / rho**2 - epsilon
    statistics.moving_variance.assign(np.maximum(corrected, 0.0))
    # What rho has become where a variance cannot be negative, or a gain is bounded (OABN).
    after = ops.convert_to_numpy(batch_norm.gain_and_shift()[0])
    rho = np.divide(after, before, out=np.ones_like(rho), where=before != 0)
    shift = np.divide(mean - real.mean, rho, out=np.zeros_like(rho), where=rho != 0)
    statistics.moving_mean.assign(quantized.mean + shift)


class CalibrationReading(Reading):
    """The reading that sets the moving statistics of each batch norm as it is merged.

    Args:
        readings: the `Readings` of the block.
        exact: whether moments are exact even with `estimate`.
    """

    def __init__(self, readings: Readings, exact: bool = False) -> None:
        self.readings = readings
        self.exact = exact

    def inside(self, outer: Pair, inner: Pair) -> Self:
        """The reading of a smaller kernel."""
        return self._derive(lambda reading: reading.inside(outer, inner))

    def after(self, prefix: AffineKernel | None, last: bool) -> Self:
        """The reading of a chain's link."""
        return self._derive(lambda reading: reading.after(prefix, last))

    def _derive(self, change: Change) -> Self:
        return type(self)(self.readings.changed(change), self.exact)

    def moments(self, batch_norm: BatchNorm, affine: AffineKernel) -> tuple[Tensor, Tensor]:
        """Measures, sets and returns the moving statistics."""
        statistics = batch_norm.statistics
        if statistics.mode == "estimate" and not self.exact:
            found = self.readings.estimated(affine, statistics.literal_estimate)
        else:
            (found,) = self.readings.moments(affine)
        set_moments(statistics, found)
        return self.moving(statistics)


class KeepingReading(CalibrationReading):
    """The reading that measures statistics with gamma and beta that keep the function.

    Training then starts from the function of inference.
    """

    def moments(self, batch_norm: BatchNorm, affine: AffineKernel) -> tuple[Tensor, Tensor]:
        """Measures, sets and returns the moving statistics, but for frozen ones."""
        if batch_norm.statistics.trainable:
            before = batch_norm.gain_and_shift()
            super().moments(batch_norm, affine)
            batch_norm.keep(*before)
        return self.moving(batch_norm.statistics)


def neutralise_dead_channels(batch_norm: BatchNorm) -> None:
    """Gives channels whose moving variance is about 0 a gamma of 0 and a variance of 1.

    Such a channel is a constant, which a batch norm turns into beta; its gain
    `gamma / sqrt(epsilon)`, in the hundreds, would only spoil the merged kernel.
    """
    statistics = batch_norm.statistics
    variance = ops.convert_to_numpy(statistics.moving_variance)
    dead = variance < _DEAD * batch_norm.epsilon
    batch_norm.gamma.assign(np.where(dead, 0.0, ops.convert_to_numpy(batch_norm.gamma)))
    statistics.moving_variance.assign(np.where(dead, 1.0, variance))

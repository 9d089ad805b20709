"""Batch normalization as a node: the only one whose merge needs the features."""

from typing import Any, TypedDict, Unpack

import numpy as np

from repq_tf.arguments import number
from repq_tf.branches.base import Branch, Wrapper, check_branch
from repq_tf.branches.fused import batch_normalized, can_fuse
from repq_tf.branches.readings import NumpyReading, Reading
from repq_tf.branches.statistics import BatchNormStatistics, check_batch_norm
from repq_tf.branches.streams import Streams
from repq_tf.keras_api import (
    Array,
    Identifier,
    Pair,
    Shape,
    Tensor,
    add_parameter,
    dtype_name,
    keras,
    ops,
)
from repq_tf.kernels import AffineKernel
from repq_tf.windows import VALID, Window


class BatchNorm(Wrapper):
    """Batch normalization of a child: `gamma * (y - E[y]) / sqrt(V[y] + epsilon) + beta`.

    Run, it is an ordinary batch norm. Merged, it scales the child's kernel per output
    channel by `gain = gamma / sqrt(V + epsilon)` and shifts it by `beta - E * gain`
    (arXiv 2311.05317, Eq. 2), where E and V come from the reading.

    Args:
        child: the branch that is normalized.
        momentum: of the moving statistics. PyTorch's 0.1 is 0.9 here.
        epsilon: added to the variance.
        gamma_initializer: Keras initializer of gamma.
        synchronized: whether replicas normalize by the global batch's moments.
        name: name of the node; defaults to `CHILD_bn`.
    """

    def __init__(
        self,
        child: Branch,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        gamma_initializer: Identifier = "ones",
        synchronized: bool = True,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(check_branch(child, "child"), name or f"{child.name}_bn", dtype)
        check_batch_norm(epsilon=epsilon)
        self.epsilon = epsilon
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.statistics = BatchNormStatistics(
            momentum=momentum, synchronized=synchronized, dtype=dtype
        )

    def build(self, input_shape: Shape) -> None:
        """Builds the child and creates gamma, beta and the moving statistics."""
        super().build(input_shape)
        channels = self.output_channels(input_shape[-1])
        self.gamma = add_parameter(self, "gamma", (channels,), self.gamma_initializer)
        self.beta = add_parameter(self, "beta", (channels,), "zeros")
        self.statistics.build((channels,))

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Runs the child and normalizes its output."""
        y = self.child(x, window=window, strides=strides, training=training)
        return self.normalize(y, training)

    def normalize(self, y: Tensor, training: bool | None, bias: Tensor | None = None) -> Tensor:
        """Normalizes the features `y + bias`."""
        if self._fuses(y, training):
            return self._fused(y, bias)
        mean, variance = self.statistics.of_features(y, training, bias)
        gain, shift = self.gain_and_shift(mean, variance)
        if bias is not None:
            shift = shift + bias * gain
        wide = ops.cast(y, gain.dtype) * gain + shift
        return ops.cast(wide, y.dtype)

    def _fuses(self, y: Tensor, training: bool | None) -> bool:
        statistics = self.statistics
        wide = dtype_name(self.gamma) == "float32"
        return (
            wide and statistics.takes_batch(training) and can_fuse(y, statistics.synchronized)
        )

    def _fused(self, y: Tensor, bias: Tensor | None) -> Tensor:
        reading = Reading()
        beta = reading.value(self.beta)
        if bias is not None:
            # The batch's mean takes it away. Its gradient is 0, which is not none at all:
            # optimizers decay no weights without one.
            beta = beta + (bias - bias)
        gamma = reading.value(self.gamma)
        normalized, mean, variance = batch_normalized(y, gamma, beta, self.epsilon)
        self.statistics.update(mean if bias is None else mean + bias, variance)
        return normalized

    def gain_and_shift(
        self,
        mean: Tensor | None = None,
        variance: Tensor | None = None,
        reading: Reading | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The affine map `gain * y + shift` of given moments, or of the moving ones."""
        reading = reading or Reading()
        if mean is None or variance is None:
            mean, variance = reading.moving(self.statistics)
        gain = self.effective_gamma(reading) / reading.xp.sqrt(variance + self.epsilon)
        return gain, reading.value(self.beta) - mean * gain

    def keep(self, gain: Tensor, shift: Tensor) -> None:
        """Sets gamma and beta so that, in inference, it is the map `gain * y + shift`."""
        mean, variance = Reading().moving(self.statistics)
        self.gamma.assign(gain * ops.sqrt(variance + self.epsilon))
        self.beta.assign(shift + mean * gain)

    def shift(self, offset: Tensor) -> bool:
        """Adds to beta."""
        self.beta.assign(self.beta + offset)
        return True

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """The outputs are free, whatever the child's are: it normalizes these."""
        normalized = self.child.join_streams(inputs, streams)
        outputs = streams.new(len(normalized))
        streams.read(normalized, self.scale_inputs)
        streams.make(outputs, self.scale_outputs)
        return outputs

    def scale_inputs(self, gain: Array) -> None:
        """Takes features of the child that are divided by `gain` as it took them before.

        In training it does so but for epsilon, which is another part of another variance.
        """
        mean, variance = NumpyReading().moving(self.statistics)
        self.statistics.moving_mean.assign(mean / gain)
        self.statistics.moving_variance.assign(variance / gain**2)
        _, scaled = NumpyReading().moving(self.statistics)
        ratio = np.sqrt((scaled + self.epsilon) / (variance + self.epsilon))
        self.gamma.assign(NumpyReading().value(self.gamma) * gain * ratio)

    def scale_outputs(self, gain: Array) -> None:
        """Multiplies gamma and beta."""
        for variable in (self.gamma, self.beta):
            variable.assign(NumpyReading().value(variable) * gain)

    def effective_gamma(self, reading: Reading) -> Tensor:
        """The gamma that normalized features are multiplied by."""
        return reading.value(self.gamma)

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """The child's kernel, scaled and shifted."""
        reading = reading or Reading()
        affine = self.child.merge(reading)
        mean, variance = reading.moments(self, affine)
        return affine.scale(*self.gain_and_shift(mean, variance, reading))


class BatchNormOptions(TypedDict, total=False):
    """Those of `BatchNorm` but for its child."""

    momentum: float
    epsilon: float
    gamma_initializer: Identifier
    synchronized: bool
    name: str | None
    dtype: Any


class OABN(BatchNorm):
    """Outlier-aware batch norm: gamma is clipped by the running variance.

    `gamma_eff = clip(gamma, -k sqrt(V + epsilon), k sqrt(V + epsilon))` with the moving
    variance V, so that in inference no channel's gain `gamma_eff / sqrt(V + epsilon)` is
    above k: a dead channel (V about 0) cannot make an outlier of the merged kernel. The
    bound gets no gradient, and a gamma beyond it gets none either.

    After OABN (arXiv 2402.07200), which clips gamma by the running variance with a tuned
    threshold. The paper's exact formula is not public; this one is our reconstruction.

    Args:
        child: the branch that is normalized.
        k: the largest gain.
        **options: those of `BatchNorm`.
    """

    def __init__(
        self, child: Branch, k: float = 2.0, **options: Unpack[BatchNormOptions]
    ) -> None:
        super().__init__(child, **options)
        self.k = number(k, "k", above=0)

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Its bound is on the gain between features as they are: neither side is free."""
        normalized = self.child.join_streams(inputs, streams)
        outputs = streams.new(len(normalized))
        for channels in (normalized, outputs):
            streams.fix(channels, f"the gain of {self.name!r} (OABN) is bounded")
        return outputs

    def effective_gamma(self, reading: Reading) -> Tensor:
        """The clipped gamma."""
        _, variance = reading.moving(self.statistics)
        bound = self.k * reading.xp.sqrt(variance + self.epsilon)
        return reading.xp.clip(reading.value(self.gamma), -bound, bound)

    def _fuses(self, y: Tensor, training: bool | None) -> bool:
        # Its gamma waits for the moving variance, and that for the batch's.
        return False

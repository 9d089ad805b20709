"""The moving statistics of a batch norm, and where its moments come from: the BN-stats layer.

`batch`, `estimate` and `sample` take them from the features, exact, estimated, or exact on a
share of the batch; `running` and `restored` use the moving ones.
"""

from typing import Any

from repq_tf.arguments import boolean, number
from repq_tf.branches.moments import Moments, estimated_moments, exact_moments, feature_moments
from repq_tf.keras_api import Layer, Shape, Tensor, add_statistic, ops
from repq_tf.kernels import AffineKernel

MODES = ("restored", "batch", "estimate", "sample", "running")


def check_mode(mode: str) -> str:
    """Returns `mode`, or raises ValueError listing the modes there are."""
    if mode not in MODES:
        raise ValueError(f"bn_statistics must be one of {MODES}. Received: {mode!r}")
    return mode


def check_batch_norm(
    momentum: float = 0.9, epsilon: float = 1e-5, sample_fraction: float = 1 / 8
) -> None:
    """Raises ValueError, naming the argument, for options no batch norm can have."""
    number(momentum, "momentum", least=0, most=1)
    number(epsilon, "epsilon", above=0)
    number(sample_fraction, "sample_fraction", above=0, most=1)


class BatchNormStatistics(Layer):
    """The moving statistics of one batch norm, and where its moments come from.

    | mode | moments in training |
    |---|---|
    | `batch` | exact, by one more convolution (RepQ-BN, Algorithm 1) |
    | `estimate` | from the input's moments (RepQ-BNEst, Eq. 5-6) |
    | `sample` | exact, on every k-th image, k = `1 / sample_fraction` rounded |
    | `running`, `restored` | the moving ones, which stay as they are |

    A quantized block's input is quantized: moments are those of Q(X), where RepQ as printed
    takes X.

    The first three update the moving statistics,
    `moving = momentum * moving + (1 - momentum) * batch`. Gradients flow through
    batch moments, not through moving ones. Replicas hold equal moving statistics.

    Frozen (`trainable=False`), the moving statistics stay and are used, as in Keras's own.

    Args:
        mode: one of the above; used when the batch norm is merged into a kernel.
            A batch norm that runs on features uses their batch moments in training.
        momentum: of the moving averages.
        sample_fraction: the share of the batch that `sample` looks at.
        literal_estimate: whether `estimate` takes Eq. 5 as printed.
        synchronized: whether replicas normalize by the global batch's moments.
    """

    def __init__(
        self,
        mode: str = "restored",
        momentum: float = 0.9,
        sample_fraction: float = 1 / 8,
        literal_estimate: bool = False,
        synchronized: bool = True,
        name: str = "statistics",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.mode = check_mode(mode)
        check_batch_norm(momentum, sample_fraction=sample_fraction)
        self.momentum = momentum
        self.sample_fraction = sample_fraction
        self.literal_estimate = boolean(literal_estimate, "literal_estimate")
        self.synchronized = boolean(synchronized, "synchronized")

    def build(self, input_shape: Shape) -> None:
        """Creates the moving mean and variance, `(channels,)`."""
        shape = (input_shape[-1],)
        self.moving_mean = add_statistic(self, "moving_mean", shape, "zeros")
        self.moving_variance = add_statistic(self, "moving_variance", shape, "ones")
        self.built = True

    def of_kernel(self, reading: Any, affine: AffineKernel) -> Moments:
        """Training moments of `reading.x * affine`, by `mode`; updates the moving ones."""
        if self.mode in ("running", "restored") or not self.trainable:
            return reading.moving(self)
        if self.mode == "estimate":
            mean, variance = estimated_moments(
                reading, affine, self.literal_estimate, self.synchronized
            )
        else:
            sample = self.mode == "sample"
            x = reading.sampled(round(1 / self.sample_fraction)) if sample else reading.x
            mean, variance = exact_moments(
                x, affine, reading.strides, reading.window, self.synchronized
            )
        self.update(mean, variance)
        return mean, variance

    def of_features(
        self, y: Tensor, training: bool | None, bias: Tensor | None = None
    ) -> Moments:
        """Moments of features, of `y + bias` if a bias is given.

        The batch's in training, which updates the moving ones; else the moving ones.
        """
        if not self.takes_batch(training):
            return ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(
                self.moving_variance
            )
        mean, variance = feature_moments(y, self.synchronized)
        if bias is not None:
            mean = mean + bias
        self.update(mean, variance)
        return mean, variance

    def takes_batch(self, training: bool | None) -> bool:
        """Whether features are normalized by their own moments, not by the moving ones."""
        return bool(training and self.trainable)

    def update(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the moving statistics towards a batch's."""
        for variable, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            value = ops.cast(ops.stop_gradient(value), variable.dtype)
            variable.assign(variable * self.momentum + value * (1.0 - self.momentum))

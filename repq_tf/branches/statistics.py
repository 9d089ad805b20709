"""Moments of convolved features: the BN-stats layer, exact and estimated moments.

Merging a batch norm needs the mean and the variance of `X * child`. RepQ-BN
convolves once more to get them (arXiv 2311.05317, Algorithm 1); RepQ-BNEst
estimates them from the input's own moments (Eq. 5-6); `sample` is exact on a
share of the batch; `running` and `restored` use the moving ones.
"""

from repq_tf.arguments import boolean, number
from repq_tf.branches.base import Reading
from repq_tf.convolution import VALID, apply_window, convolve, crop_window, subsample
from repq_tf.keras_api import Layer, add_statistic, dtype_name, ops, replica_mean

MODES = ("restored", "batch", "estimate", "sample", "running")


def check_mode(mode):
    """Returns `mode`, or raises ValueError listing the modes there are."""
    if mode not in MODES:
        raise ValueError(f"bn_statistics must be one of {MODES}. Received: {mode!r}")
    return mode


def check_batch_norm(momentum=0.9, epsilon=1e-5, sample_fraction=1 / 8):
    """Raises ValueError, naming the argument, for options no batch norm can have."""
    number(momentum, "momentum", least=0, most=1)
    number(epsilon, "epsilon", above=0)
    number(sample_fraction, "sample_fraction", above=0, most=1)


def feature_moments(y, synchronized=True):
    """Mean and variance `(channels,)` of features over batch, height and width.

    They are computed in float32 at least. The variance is the biased one, over N: Keras's
    and the one that normalizes; PyTorch's moving variance is over N - 1. With
    `synchronized`, they are those of the global batch when replicas share it.
    """
    y = _wide(y)
    mean = ops.mean(y, axis=(0, 1, 2))
    mean = replica_mean(mean) if synchronized else mean
    variance = ops.mean(ops.square(y - mean), axis=(0, 1, 2))
    return mean, replica_mean(variance) if synchronized else variance


def _wide(x):
    return ops.cast(x, "float64" if dtype_name(x) == "float64" else "float32")


def exact_moments(x, affine, strides=(1, 1), window=VALID, synchronized=True):
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


def _is_scaling(affine):
    """Whether a kernel only scales each channel."""
    channels = affine.in_channels
    return affine.size == (1, 1) and affine.groups == channels == affine.out_channels


class FeatureReading(Reading):
    """The reading of training: moments come from the features.

    Derived readings (`inside`, `after`) share the features and what was already
    computed of them.

    Args:
        x: the block's input `(batch, height, width, channels)`, unpadded.
        window: the zeros the block pads it with.
        strides: the block's strides.
    """

    def __init__(self, x, window, strides, prefix=None, moments=None):
        self.x = x
        self.window = window
        self.strides = strides
        self._prefix = prefix
        self._input_moments = {} if moments is None else moments

    def inside(self, outer, inner):
        """The reading of a smaller kernel: a crop of the window."""
        window = crop_window(self.window, outer, inner)
        return self._derive(window, self.strides, self._prefix)

    def after(self, prefix, last):
        """The reading of a chain's link: what precedes it is composed with it."""
        if self._prefix is not None and prefix is not None:
            prefix = self._prefix.then(prefix)
        elif prefix is None:
            prefix = self._prefix
        return self._derive(self.window, self.strides if last else (1, 1), prefix)

    def _derive(self, window, strides, prefix):
        return type(self)(self.x, window, strides, prefix, self._input_moments)

    def moments(self, batch_norm, affine):
        """The moments, in the mode of the statistics; updates the moving ones."""
        return batch_norm.statistics.of_kernel(self, self.composed(affine))

    def composed(self, affine):
        """`affine` after everything that precedes it, as a map of the block's input."""
        return affine if self._prefix is None else self._prefix.then(affine)

    def input_moments(self, synchronized=True):
        """Batch-mean image `(h, w, c)`, mean `(c,)` and variance `(c,)` of the input."""
        if synchronized not in self._input_moments:
            x = _wide(self.x)
            image = ops.mean(x, axis=0)
            image = replica_mean(image) if synchronized else image
            mean = ops.mean(image, axis=(0, 1))
            variance = ops.mean(ops.square(x - mean), axis=(0, 1, 2))
            variance = replica_mean(variance) if synchronized else variance
            self._input_moments[synchronized] = (image, mean, variance)
        return self._input_moments[synchronized]


def estimated_moments(reading, affine, literal=False, synchronized=True):
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
    if literal:
        response = affine.response(mean)
    else:
        taps = [
            _tap_weights(ops.shape(image)[axis], affine.size[axis], reading, axis)
            for axis in range(2)
        ]
        tap_means = ops.einsum("hy,yxc,dx->hdc", taps[0], image, taps[1])
        inputs, outputs = affine.kernel.shape[2], affine.out_channels // affine.groups
        tap_means = ops.reshape(tap_means, (-1, affine.groups, inputs))
        kernel = ops.reshape(affine.kernel, (-1, inputs, affine.groups, outputs))
        response = ops.reshape(ops.einsum("tigo,tgi->go", kernel, tap_means), (-1,))
    squares = type(affine)(ops.square(affine.kernel), affine.bias, affine.groups)
    return response + affine.bias, squares.response(variance)


def _tap_weights(length, size, reading, axis):
    """`(size, length)`: the share of outputs for which tap t reads pixel y."""
    (before, after), stride = reading.window[axis], reading.strides[axis]
    count = (length + before + after - size) // stride + 1
    pixel = ops.arange(length, dtype="int32")[None, :]
    offset = pixel - ops.arange(size, dtype="int32")[:, None] + before
    hit = (offset % stride == 0) & (offset >= 0) & (offset < count * stride)
    dtype = dtype_name(_wide(reading.x))
    return ops.cast(hit, dtype) / ops.cast(count, dtype)


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
        mode="restored",
        momentum=0.9,
        sample_fraction=1 / 8,
        literal_estimate=False,
        synchronized=True,
        name="statistics",
        dtype=None,
    ):
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.mode = check_mode(mode)
        check_batch_norm(momentum, sample_fraction=sample_fraction)
        self.momentum = momentum
        self.sample_fraction = sample_fraction
        self.literal_estimate = boolean(literal_estimate, "literal_estimate")
        self.synchronized = boolean(synchronized, "synchronized")

    def build(self, input_shape):
        """Creates the moving mean and variance, `(channels,)`."""
        shape = (input_shape[-1],)
        self.moving_mean = add_statistic(self, "moving_mean", shape, "zeros")
        self.moving_variance = add_statistic(self, "moving_variance", shape, "ones")
        self.built = True

    def of_kernel(self, reading, affine):
        """Training moments of `reading.x * affine`, by `mode`; updates the moving ones."""
        if self.mode in ("running", "restored") or not self.trainable:
            return reading.moving(self)
        if self.mode == "estimate":
            mean, variance = estimated_moments(
                reading, affine, self.literal_estimate, self.synchronized
            )
        else:
            x = reading.x
            if self.mode == "sample":
                # Every k-th image, of which replicas take the same as one device does.
                x = x[:: round(1 / self.sample_fraction)]
            mean, variance = exact_moments(
                x, affine, reading.strides, reading.window, self.synchronized
            )
        self.update(mean, variance)
        return mean, variance

    def of_features(self, y, training, bias=None):
        """Moments of features, of `y + bias` if a bias is given.

        The batch's in training, which updates the moving ones; else the moving ones.
        """
        if not training or not self.trainable:
            return ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(
                self.moving_variance
            )
        mean, variance = feature_moments(y, self.synchronized)
        if bias is not None:
            mean = mean + bias
        self.update(mean, variance)
        return mean, variance

    def update(self, mean, variance):
        """Moves the moving statistics towards a batch's."""
        for variable, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            value = ops.cast(ops.stop_gradient(value), variable.dtype)
            variable.assign(variable * self.momentum + value * (1.0 - self.momentum))

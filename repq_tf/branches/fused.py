"""Batch normalization and moments by TensorFlow's one operator: few passes over features."""

from typing import TypeAlias

from repq_tf.keras_api import (
    Tensor,
    backend,
    dtype_name,
    ops,
    replicas,
    traced_for_xla,
)

Moments: TypeAlias = tuple[Tensor, Tensor]  # mean and variance, `(channels,)` each


def can_fuse(y: Tensor, synchronized: bool) -> bool:
    """Whether TensorFlow's operator can find and take the moments of features.

    It has no float64 and knows nothing of replicas. XLA makes `E[y^2] - E[y]^2` of its
    variance, which rounding makes negative.

    Args:
        y: features.
        synchronized: whether replicas share the moments.
    """
    return (
        backend() == "tensorflow"
        and dtype_name(y) in ("float32", "bfloat16", "float16")
        and not (synchronized and replicas() > 1)
        and not traced_for_xla()
    )


def batch_normalized(
    y: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Features normalized by their moments, computed in float32, and the moments.

    The gradient flows through the normalized features alone.

    Args:
        y: `(batch, height, width, channels)`, for which `can_fuse` holds.
        gamma: float32 `(channels,)`.
        beta: likewise.
        epsilon: added to the variance.

    Returns:
        `gamma * (y - mean) / sqrt(variance + epsilon) + beta` in y's dtype, mean and
        (biased) variance `(channels,)`.
    """
    import tensorflow as tf

    result = tf.raw_ops.FusedBatchNormV3(
        x=y, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    # Its variance is over N - 1.
    count = _count(y)
    variance = result.batch_variance * ((count - 1.0) / count)
    return result.y, result.batch_mean, variance


def fused_moments(y: Tensor) -> Moments:
    """The mean and the (biased) variance of features, with a gradient of one pass.

    With incoming gradients m and v, that of a feature is `(m + 2 v (y - mean)) / N`.

    Args:
        y: `(batch, height, width, channels)`, for which `can_fuse` holds.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def moments(y: Tensor) -> tuple:
        mean, variance = _moments(y)

        def gradient(to_mean: Tensor, to_variance: Tensor) -> Tensor:
            return _to_features(y, mean, to_mean, to_variance)

        return (mean, variance), gradient

    return moments(y)


def fused_image_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean image `(height, width, channels)` of a batch, and its `fused_moments`.

    Args:
        x: `(batch, height, width, channels)`, for which `can_fuse` holds.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def moments(x: Tensor) -> tuple:
        shape = tf.shape(x)
        batch = ops.cast(shape[0], "float32")
        # A product of matrices, which adds up rows in a third of the time of a mean.
        rows = ops.cast(tf.reshape(x, (shape[0], -1)), "float32")
        image = tf.reshape(tf.ones((1, shape[0])) @ rows, shape[1:]) / batch
        mean, variance = _moments(x)

        def gradient(to_image: Tensor, to_mean: Tensor, to_variance: Tensor) -> Tensor:
            to_x = _to_features(x, mean, to_mean, to_variance)
            return to_x + ops.cast(to_image / batch, x.dtype)

        return (tf.ensure_shape(image, x.shape[1:]), mean, variance), gradient

    return moments(x)


def _moments(y: Tensor) -> Moments:
    channels = y.shape[-1]
    one, zero = ops.ones(channels, "float32"), ops.zeros(channels, "float32")
    _, mean, variance = batch_normalized(y, one, zero, epsilon=1.0)
    return mean, variance


def _to_features(y: Tensor, mean: Tensor, to_mean: Tensor, to_variance: Tensor) -> Tensor:
    """The gradient to features of their moments, as a batch norm of given moments."""
    import tensorflow as tf

    count = _count(y)
    return tf.raw_ops.FusedBatchNormV3(
        x=y,
        scale=2.0 * to_variance / count,
        offset=to_mean / count,
        mean=mean,
        variance=tf.ones_like(mean),
        epsilon=0.0,
        is_training=False,
    ).y


def _count(y: Tensor) -> Tensor:
    """How many values of each channel there are."""
    return ops.cast(ops.size(y), "float32") / y.shape[-1]

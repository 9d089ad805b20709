"""Batch normalization by TensorFlow's one operator: two passes over features, not ten."""

from repq_tf.keras_api import (
    Tensor,
    backend,
    dtype_name,
    ops,
    replicas,
    traced_for_xla,
)


def can_fuse(y: Tensor, gamma: Tensor, synchronized: bool) -> bool:
    """Whether TensorFlow's operator can normalize features by their batch's moments.

    It has no float64 and knows nothing of replicas. XLA makes `E[y^2] - E[y]^2` of its
    variance, which rounding makes negative.

    Args:
        y: features.
        gamma: the batch norm's.
        synchronized: whether replicas share the moments.
    """
    return (
        backend() == "tensorflow"
        and dtype_name(gamma) == "float32"
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
        gamma: `(channels,)`.
        beta: `(channels,)`.
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
    count = ops.cast(ops.size(y), "float32") / y.shape[-1]
    variance = result.batch_variance * ((count - 1.0) / count)
    return result.y, result.batch_mean, variance

"""What lies inside of bounds, in as few passes over features as the backend allows."""

import numpy as np

from repq_tf.keras_api import Tensor, backend, dtype_name, ops, traced_for_xla


def inside(x: Tensor, low: Tensor, high: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `upstream` and `x`, with 0 wherever `low < x < high` is false.

    Args:
        x: a float32 or float64 tensor; what is infinite is not inside.
        low: a bound for all values, or several that broadcast.
        high: likewise.
        upstream: of x's shape and dtype.
    """
    if backend() != "tensorflow":
        found = ops.logical_and(x > low, x < high)
        zeros = ops.zeros_like(x)
        return ops.where(found, upstream, zeros), ops.where(found, x, zeros)
    import tensorflow as tf

    if low.shape.rank == high.shape.rank == 0 and not traced_for_xla():
        return _in_few_passes(x, low, high, upstream)
    # Products take a third of the time of TensorFlow's `where`.
    mask = ops.cast(ops.logical_and(x > low, x < high), x.dtype)
    return tf.math.multiply_no_nan(upstream, mask), tf.math.multiply_no_nan(x, mask)


def _in_few_passes(
    x: Tensor, low: Tensor, high: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """By the gradient of TensorFlow's own fake quantizer, to which its bounds are inside."""
    import tensorflow as tf

    info = np.finfo(dtype_name(x))
    # Processors that take the smallest numbers for 0 would take the one after 0 for it.
    first = tf.where(low == 0, info.tiny, tf.math.nextafter(low, info.max))
    last = tf.math.nextafter(high, -info.max)

    def select(value: Tensor) -> Tensor:
        # It multiplies by 0 and 1, so that values must be finite.
        return tf.raw_ops.QuantizeAndDequantizeV4Grad(
            gradients=value, input=x, input_min=first, input_max=last
        ).input_backprop

    finite = tf.raw_ops.ClipByValue(t=x, clip_value_min=first, clip_value_max=last)
    return select(upstream), select(finite)

"""Batches as `fit` takes them, and of a size that several devices can share.

TensorFlow is imported where it is used: training on another backend may be without it.
"""

from typing import Any, TypeAlias

from repq_tf.keras_api import backend, keras
from repq_tf.train.errors import UserError

Batches: TypeAlias = Any  # a `keras.utils.PyDataset`, or a `tf.data.Dataset`


def as_fit_wants(batches: Batches) -> Batches:
    """Returns batches as `fit` and `evaluate` take them: `tf.data`, where TensorFlow trains."""
    if backend() == "tensorflow":
        return as_tf_data(batches)
    return batches if isinstance(batches, keras.utils.PyDataset) else _untuned(batches)


def as_tf_data(batches: Batches) -> Batches:
    """Returns batches of a `PyDataset` as `tf.data`, made by as many threads as it asks for."""
    import tensorflow as tf

    if isinstance(batches, tf.data.Dataset):
        return _untuned(batches)
    first = batches[0]

    def read(index: Any) -> tuple[Any, ...]:
        types = [array.dtype for array in first]
        batch = tf.numpy_function(lambda k: batches[k], [index], types, stateful=False)
        shapes = [(None, *array.shape[1:]) for array in first]
        return tuple(map(tf.ensure_shape, batch, shapes))

    data = tf.data.Dataset.range(len(batches))
    data = data.map(read, max(1, batches.workers), deterministic=True)
    return _untuned(data.prefetch(2))


def _untuned(data: Any) -> Any:
    """Switches the autotuner of `tf.data` off.

    Its thread sleeps twice as long after each look, up to a minute, and TensorFlow 2.21 does
    not wake it: an epoch that is over waits for it, for as long as it has trained at worst.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def even_batch(count: int, batch_size: int, devices: int) -> int:
    """Returns the batch size with which devices can evaluate a number of inputs together.

    Keras needs the first batch to be the same for all devices, and no device may be
    without an input in the last one, which has what is left.

    Args:
        count: Number of inputs.
        batch_size: Largest batch size.
        devices: Number of devices.

    Raises:
        UserError: If there is no such size.
    """
    largest = min(batch_size, count)
    for size in range(largest - largest % devices, 0, -devices):
        if count % size == 0 or count % size >= devices:
            return size
    raise UserError(
        f"{count} test images cannot be shared by {devices} devices in batches of at most"
        f" {batch_size}: change --batch_size, or use --strategy=none."
    )

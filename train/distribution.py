"""Training on the devices of one machine."""

import contextlib

import keras

from repq_tf.train.errors import UserError


def make_strategy(name):
    """Returns the `tf.distribute` strategy that `--strategy` asks for, or `None`.

    Args:
        name: `"none"`; `"mirrored"`, over all GPUs, or all CPU devices without any; or
            `"auto"`, which is mirrored if there is more than one GPU.

    Raises:
        UserError: If mirrored is asked for on another backend than TensorFlow.
    """
    if name == "none":
        return None
    if keras.backend.backend() != "tensorflow":
        if name == "mirrored":
            raise UserError(
                "--strategy=mirrored needs the TensorFlow backend. Received: KERAS_BACKEND="
                f"{keras.backend.backend()}. Use --strategy=none."
            )
        return None
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto" and len(gpus) < 2:
        return None
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def scope(strategy):
    """Returns the context in which models and optimizers of a strategy are made."""
    return strategy.scope() if strategy else contextlib.nullcontext()


def replicas(strategy):
    """Returns the number of devices that train."""
    return strategy.num_replicas_in_sync if strategy else 1


def even_batch(count, batch_size, devices):
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

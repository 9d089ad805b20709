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

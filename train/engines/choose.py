"""Which engine `--strategy` asks for."""

import keras

from repq_tf.keras_api import LEGACY, backend
from repq_tf.train.engines.base import Engine
from repq_tf.train.engines.data_parallel import DataParallel
from repq_tf.train.engines.mirrored import Mirrored, MultiWorker, gpus
from repq_tf.train.errors import UserError


def make_engine(name: str) -> Engine:
    """Returns the engine that `--strategy` asks for.

    Args:
        name: `"none"`; `"mirrored"`, all devices of this machine with TensorFlow;
            `"multi_worker"`, several machines with TensorFlow; `"data_parallel"`, all devices
            of one or several machines with JAX; or `"auto"`, which is mirrored or data
            parallel where this machine has more than one accelerator.

    Raises:
        UserError: If the backend has no such engine, or the machines are not described.
    """
    here = backend()
    if name == "auto":
        name = _auto(here)
    if name == "mirrored":
        _check_backend(name, "tensorflow", "--strategy=data_parallel is JAX's.")
        return Mirrored()
    if name == "data_parallel":
        _check_backend(name, "jax", "--strategy=mirrored is TensorFlow's.")
        return DataParallel()
    if name == "multi_worker":
        _check_multi_worker()
        return MultiWorker()
    return Engine()


def _auto(here: str) -> str:
    if here == "tensorflow" and len(gpus()) > 1:
        return "mirrored"
    if here == "jax":
        devices = keras.distribution.list_devices()
        if len(devices) > 1 and not devices[0].startswith("cpu"):
            return "data_parallel"
    return "none"


def _check_backend(name: str, needed: str, otherwise: str) -> None:
    if backend() != needed:
        title = {"tensorflow": "TensorFlow", "jax": "JAX"}[needed]
        raise UserError(
            f"--strategy={name} needs the {title} backend, KERAS_BACKEND={needed}. Received:"
            f" KERAS_BACKEND={backend()}. {otherwise}"
        )


def _check_multi_worker() -> None:
    """Refuses Keras 3, whose `fit` fails with this strategy."""
    if not LEGACY:
        raise UserError(
            "--strategy=multi_worker is TensorFlow's MultiWorkerMirroredStrategy, with which"
            f" Keras 3 cannot train. Received: Keras {keras.version()} on {backend()}. Several"
            " machines train with tf_keras: set TF_USE_LEGACY_KERAS=1; or with JAX: set"
            " KERAS_BACKEND=jax and give --strategy=data_parallel."
        )

"""Engines that train on several devices, of this machine or of several machines.

An engine is TensorFlow's or JAX's own; here they get one face. Every worker, one process a
machine, runs the whole program on its share of each batch. Worker 0, the chief, is the only
one that writes files, in a folder that all of them see.
"""

import contextlib
import json
import os

import keras

from repq_tf.keras_api import LEGACY, backend
from repq_tf.train.batches import as_fit_wants, as_tf_data
from repq_tf.train.errors import UserError

_TF_CONFIG = (
    '{"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]},'
    ' "task": {"type": "worker", "index": 0}}'
)
_JAX_PROCESSES = "KERAS_DISTRIBUTION_"


class Engine:
    """One device, and the base of the others.

    Attributes:
        devices: Number of devices that train together, those of all workers.
        workers: Number of processes.
        worker: The number of this one; 0 is the chief.
    """

    devices = 1
    workers = 1
    worker = 0

    @property
    def is_chief(self):
        """Whether this process writes the files."""
        return self.worker == 0

    def scope(self):
        """Returns the context in which models and optimizers are made and trained."""
        return contextlib.nullcontext()

    @property
    def shard(self):
        """`(worker, workers)`: which part of each training batch is this worker's."""
        return self.worker, self.workers

    def fit_data(self, train, test):
        """Returns the arguments of `fit` that are data.

        Args:
            train: This worker's training batches, a `PyDataset` or `tf.data.Dataset`.
            test: The test batches of all workers. What several workers, or JAX's devices,
                cannot share evenly is left out.
        """
        return {"x": as_fit_wants(train), "validation_data": as_fit_wants(test)}

    def wait(self, border):
        """Returns when all workers have come here.

        Args:
            border: Name of the place, for messages.

        Raises:
            UserError: If another worker stopped.
        """

    def _part(self, batch, count):
        """Cuts this worker's part out of a batch of `count`; all devices get equally many."""
        size = count // self.devices * (self.devices // self.workers)
        return tuple(array[self.worker * size : (self.worker + 1) * size] for array in batch)


class Mirrored(Engine):
    """`tf.distribute.MirroredStrategy`: the devices of this machine.

    Args:
        strategy: The strategy; by default over all GPUs, or all CPU devices without any.
    """

    def __init__(self, strategy=None):
        if strategy is None:
            import tensorflow as tf

            devices = _gpus() or tf.config.list_logical_devices("CPU")
            strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        self.strategy = strategy
        self.devices = strategy.num_replicas_in_sync

    def scope(self):  # noqa: D102
        return self.strategy.scope()

    def fit_data(self, train, test):  # noqa: D102
        return {
            "x": as_fit_wants(train),
            "validation_data": self._share(test),
            "validation_steps": len(test),
        }

    def _share(self, batches):
        """Hands every device its piece of each batch; their sizes differ by one at most.

        TensorFlow would fill the first devices with the last batch and leave others empty,
        which batch norms do not bear.
        """
        import tensorflow as tf

        def split(*batch):
            count = tf.shape(batch[0], tf.int64)[0]

            def piece(device):
                begin, end = (count * k // self.devices for k in (device, device + 1))
                return tuple(array[begin:end] for array in batch)

            return tf.data.Dataset.range(self.devices).map(piece)

        data = as_tf_data(batches).flat_map(split)
        return self.strategy.distribute_datasets_from_function(lambda context: data)


class MultiWorker(Mirrored):
    """`tf.distribute.MultiWorkerMirroredStrategy` of the machines in `TF_CONFIG`, on tf_keras.

    Moving statistics are averaged over the workers when they are read, so all workers must
    read a model together.

    Raises:
        UserError: If `TF_CONFIG` does not describe them.
    """

    def __init__(self):
        import tensorflow as tf

        self.workers, self.worker = _read_tf_config()
        super().__init__(tf.distribute.MultiWorkerMirroredStrategy())

        def add_up():
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0))

        self._meet = tf.function(lambda: self.strategy.run(add_up))

    def fit_data(self, train, test):  # noqa: D102
        return {
            "x": self._distribute(train),
            "steps_per_epoch": len(train),
            "validation_data": self._distribute(test, cut=True),
            "validation_steps": len(test),
        }

    def _distribute(self, batches, cut=False):
        """Hands the replicas of this worker their pieces, of its part or of all batches."""
        import tensorflow as tf

        local = self.devices // self.workers

        def split(*batch):
            part = self._part(batch, tf.shape(batch[0])[0]) if cut else batch
            shapes = [tf.concat([[local, -1], tf.shape(array)[1:]], 0) for array in part]
            pieces = [tf.reshape(a, shape) for a, shape in zip(part, shapes, strict=True)]
            return tf.data.Dataset.from_tensor_slices(tuple(pieces))

        data = as_tf_data(batches).flat_map(split)
        return self.strategy.distribute_datasets_from_function(lambda context: data)

    def wait(self, border):  # noqa: D102
        import tensorflow as tf

        try:
            self._meet()
        except tf.errors.OpError as error:
            raise _lost_worker(border) from error


class DataParallel(Engine):
    """`keras.distribution.DataParallel` on JAX: the devices of one or several processes.

    Several processes are those of Keras's environment variables `KERAS_DISTRIBUTION_*`.

    Raises:
        UserError: If the processes cannot be joined.
    """

    def __init__(self):
        import jax

        given = {k: v for k, v in os.environ.items() if k.startswith(_JAX_PROCESSES)}
        if given:
            try:
                keras.distribution.initialize()
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    "--strategy=data_parallel reads the processes from"
                    f" {_JAX_PROCESSES}JOB_ADDRESSES (HOST0:PORT of process 0),"
                    f" {_JAX_PROCESSES}NUM_PROCESSES and {_JAX_PROCESSES}PROCESS_ID, and could"
                    f" not join them: {error} Received: {given}"
                ) from error
        self._distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        self.devices = len(keras.distribution.list_devices())
        self.workers = jax.process_count()
        self.worker = jax.process_index()

    def scope(self):  # noqa: D102
        return self._distribution.scope()

    def fit_data(self, train, test):  # noqa: D102
        if isinstance(test, keras.utils.PyDataset):
            return {"x": train, "validation_data": _Share(test, self._part)}
        import tensorflow as tf

        part = test.map(lambda *batch: self._part(batch, tf.shape(batch[0])[0]))
        return {"x": train, "validation_data": part}

    def wait(self, border):  # noqa: D102
        import jax
        from jax.experimental import multihost_utils

        try:
            multihost_utils.sync_global_devices(border)
        except jax.errors.JaxRuntimeError as error:
            raise _lost_worker(border) from error


class _Share(keras.utils.PyDataset):
    """A part of each batch of a data set."""

    def __init__(self, batches, part):
        super().__init__(workers=batches.workers)
        self._batches = batches
        self._part = part

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        batch = self._batches[index]
        return self._part(batch, len(batch[0]))


def make_engine(name):
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


def _auto(here):
    if here == "tensorflow" and len(_gpus()) > 1:
        return "mirrored"
    if here == "jax":
        devices = keras.distribution.list_devices()
        if len(devices) > 1 and not devices[0].startswith("cpu"):
            return "data_parallel"
    return "none"


def _gpus():
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def _check_backend(name, needed, otherwise):
    if backend() != needed:
        title = {"tensorflow": "TensorFlow", "jax": "JAX"}[needed]
        raise UserError(
            f"--strategy={name} needs the {title} backend, KERAS_BACKEND={needed}. Received:"
            f" KERAS_BACKEND={backend()}. {otherwise}"
        )


def _check_multi_worker():
    """Refuses Keras 3, whose `fit` fails with this strategy."""
    if not LEGACY:
        raise UserError(
            "--strategy=multi_worker is TensorFlow's MultiWorkerMirroredStrategy, with which"
            f" Keras 3 cannot train. Received: Keras {keras.version()} on {backend()}. Several"
            " machines train with tf_keras: set TF_USE_LEGACY_KERAS=1; or with JAX: set"
            " KERAS_BACKEND=jax and give --strategy=data_parallel."
        )


def _read_tf_config():
    """Returns the number of workers, and which of them this is."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        kinds, task = ("chief", "worker"), config["task"]
        names = [
            (kind, k) for kind in kinds for k in range(len(config["cluster"].get(kind, ())))
        ]
        return len(names), names.index((task["type"], int(task["index"])))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            "--strategy=multi_worker reads the machines from the environment variable"
            f" TF_CONFIG, for example {_TF_CONFIG}. Received: {text!r}"
        ) from error


def _lost_worker(border):
    return UserError(
        f"Another worker stopped while this one waited for it ({border}); see its messages."
        " Started again, all workers go on from the last checkpoint."
    )

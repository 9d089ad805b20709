"""TensorFlow's engines: the devices of this machine, or of several.

TensorFlow is imported where it is used: training on another backend may be without it.
"""

import contextlib
import json
import os
from typing import Any

from repq_tf.keras_api import Tensor
from repq_tf.train.engines.base import Engine, lost_worker
from repq_tf.train.engines.batches import Batches, as_fit_wants, as_tf_data
from repq_tf.train.errors import UserError

_TF_CONFIG = (
    '{"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]},'
    ' "task": {"type": "worker", "index": 0}}'
)


class Mirrored(Engine):
    """`tf.distribute.MirroredStrategy`: the devices of this machine.

    Args:
        strategy: The strategy; by default over all GPUs, or all CPU devices without any.
    """

    def __init__(self, strategy: Any = None) -> None:
        if strategy is None:
            import tensorflow as tf

            devices = gpus() or tf.config.list_logical_devices("CPU")
            strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        self.strategy = strategy
        self.devices = strategy.num_replicas_in_sync

    def scope(self) -> contextlib.AbstractContextManager[Any]:  # noqa: D102
        return self.strategy.scope()

    def fit_data(self, train: Batches, test: Batches) -> dict[str, Any]:  # noqa: D102
        return {
            "x": as_fit_wants(train),
            "validation_data": self._share(test),
            "validation_steps": len(test),
        }

    def _share(self, batches: Batches) -> Any:
        """Hands every device its piece of each batch; their sizes differ by one at most.

        TensorFlow would fill the first devices with the last batch and leave others empty,
        which batch norms do not bear.
        """
        import tensorflow as tf

        def split(*batch: Tensor) -> Any:
            count = tf.shape(batch[0], tf.int64)[0]

            def piece(device: Tensor) -> tuple[Tensor, ...]:
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

    def __init__(self) -> None:
        import tensorflow as tf

        self.workers, self.worker = _read_tf_config()
        super().__init__(tf.distribute.MultiWorkerMirroredStrategy())

        def add_up() -> Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0))

        self._meet = tf.function(lambda: self.strategy.run(add_up))

    def fit_data(self, train: Batches, test: Batches) -> dict[str, Any]:  # noqa: D102
        return {
            "x": self._distribute(train),
            "steps_per_epoch": len(train),
            "validation_data": self._distribute(test, cut=True),
            "validation_steps": len(test),
        }

    def _distribute(self, batches: Batches, cut: bool = False) -> Any:
        """Hands the replicas of this worker their pieces, of its part or of all batches."""
        import tensorflow as tf

        local = self.devices // self.workers

        def split(*batch: Tensor) -> Any:
            part = self._part(batch, tf.shape(batch[0])[0]) if cut else batch
            shapes = [tf.concat([[local, -1], tf.shape(array)[1:]], 0) for array in part]
            pieces = [tf.reshape(a, shape) for a, shape in zip(part, shapes, strict=True)]
            return tf.data.Dataset.from_tensor_slices(tuple(pieces))

        data = as_tf_data(batches).flat_map(split)
        return self.strategy.distribute_datasets_from_function(lambda context: data)

    def wait(self, border: str) -> None:  # noqa: D102
        import tensorflow as tf

        try:
            self._meet()
        except tf.errors.OpError as error:
            raise lost_worker(border) from error


def gpus() -> list[Any]:
    """Returns the GPUs that TensorFlow sees."""
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def _read_tf_config() -> tuple[int, int]:
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

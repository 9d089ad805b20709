"""JAX's engine: the devices of one or several processes."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import keras

from repq_tf.train.engines.base import Engine, lost_worker
from repq_tf.train.engines.batches import Batches
from repq_tf.train.errors import UserError

_JAX_PROCESSES = "KERAS_DISTRIBUTION_"


class DataParallel(Engine):
    """`keras.distribution.DataParallel` on JAX: the devices of one or several processes.

    Several processes are those of Keras's environment variables `KERAS_DISTRIBUTION_*`.

    Raises:
        UserError: If the processes cannot be joined.
    """

    def __init__(self) -> None:
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

    def scope(self) -> contextlib.AbstractContextManager[Any]:  # noqa: D102
        return self._distribution.scope()

    def fit_data(self, train: Batches, test: Batches) -> dict[str, Any]:  # noqa: D102
        if isinstance(test, keras.utils.PyDataset):
            return {"x": train, "validation_data": _Share(test, self._part)}
        import tensorflow as tf

        part = test.map(lambda *batch: self._part(batch, tf.shape(batch[0])[0]))
        return {"x": train, "validation_data": part}

    def wait(self, border: str) -> None:  # noqa: D102
        import jax
        from jax.experimental import multihost_utils

        try:
            multihost_utils.sync_global_devices(border)
        except jax.errors.JaxRuntimeError as error:
            raise lost_worker(border) from error


class _Share(keras.utils.PyDataset):
    """A part of each batch of a data set."""

    def __init__(self, batches: Batches, part: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__(workers=batches.workers)
        self._batches = batches
        self._part = part

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        batch = self._batches[index]
        return self._part(batch, len(batch[0]))

"""One device, and the base of engines that train on several.

An engine is TensorFlow's or JAX's own; here they get one face. Every worker, one process a
machine, runs the whole program on its share of each batch. Worker 0, the chief, is the only
one that writes files, in a folder that all of them see.
"""

import contextlib
from typing import Any

from repq_tf.train.engines.batches import Batches, as_fit_wants
from repq_tf.train.errors import UserError


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
    def is_chief(self) -> bool:
        """Whether this process writes the files."""
        return self.worker == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models and optimizers are made and trained."""
        return contextlib.nullcontext()

    @property
    def shard(self) -> tuple[int, int]:
        """`(worker, workers)`: which part of each training batch is this worker's."""
        return self.worker, self.workers

    def fit_data(self, train: Batches, test: Batches) -> dict[str, Any]:
        """Returns the arguments of `fit` that are data.

        Args:
            train: This worker's training batches, a `PyDataset` or `tf.data.Dataset`.
            test: The test batches of all workers. What several workers, or JAX's devices,
                cannot share evenly is left out.
        """
        return {"x": as_fit_wants(train), "validation_data": as_fit_wants(test)}

    def wait(self, border: str) -> None:
        """Returns when all workers have come here.

        Args:
            border: Name of the place, for messages.

        Raises:
            UserError: If another worker stopped.
        """

    def _part(self, batch: Any, count: Any) -> tuple[Any, ...]:
        """Cuts this worker's part out of a batch of `count`; all devices get equally many."""
        size = count // self.devices * (self.devices // self.workers)
        return tuple(array[self.worker * size : (self.worker + 1) * size] for array in batch)


def lost_worker(border: str) -> UserError:
    """Returns the error of a worker whose wait for the others ended badly."""
    return UserError(
        f"Another worker stopped while this one waited for it ({border}); see its messages."
        " Started again, all workers go on from the last checkpoint."
    )

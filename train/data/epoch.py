"""One epoch of training batches, on any Keras backend."""

import abc

import keras
import numpy as np


class EpochDataset(keras.utils.PyDataset, abc.ABC):
    """Batches whose content is a function of the seed and the epoch alone.

    Which examples a batch holds, their order and their random changes follow from `seed`
    and the epoch, so training can continue at any epoch. Each end of an epoch moves on to the
    next one. An incomplete last batch is left out. Give `fit` `shuffle=False`: Keras would
    change the order of the batches.

    Args:
        count: Number of examples.
        batch_size: Examples per batch, over all workers.
        seed: Seed of order and random changes.
        epoch: The epoch to begin with.
        steps: Batches per epoch; by default all.
        shard: `(index, count)` of this worker among several: of each batch it gets the
            examples index, index + count, ...
        workers: Threads that prepare batches.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        steps: int | None = None,
        shard: tuple[int, int] = (0, 1),
        workers: int = 1,
    ) -> None:
        super().__init__(workers=workers)
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.shard = shard
        self.steps = count // batch_size if steps is None else steps
        self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(self.count)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        first = index * self.batch_size
        worker, workers = self.shard
        chosen = self.order[first + worker : first + self.batch_size : workers]
        return self.make_batch(
            chosen, np.random.default_rng([self.seed, self.epoch, index, worker])
        )

    @abc.abstractmethod
    def make_batch(
        self, chosen: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Returns a batch, as `fit` takes it.

        Args:
            chosen: Numbers of its examples.
            rng: The generator of its random changes.
        """

    def on_epoch_end(self) -> None:
        """Moves on to the next epoch; Keras calls it."""
        self._begin(self.epoch + 1)

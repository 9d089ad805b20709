"""What every source of images offers."""

import abc
import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from repq_tf.train.engines.batches import Batches
from repq_tf.train.tasks.classification.regularization import NONE, Regularization


class Images(abc.ABC):
    """Labelled images, split into training and test images.

    Args:
        name: Name for messages and the report.
        class_names: Names of the classes, in the order of the labels.
        image_shape: `(height, width, channels)` of the network's input.
        train_size: Number of training images.
        test_size: Number of test images.
        skipped: Names of the images that were left out because they cannot be decoded.
    """

    def __init__(
        self,
        name: str,
        class_names: tuple[str, ...],
        image_shape: Iterable[int],
        train_size: int,
        test_size: int,
        skipped: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.class_names = class_names
        self.image_shape = tuple(int(n) for n in image_shape)
        self.train_size = train_size
        self.test_size = test_size
        self.skipped = tuple(skipped)

    @abc.abstractmethod
    def train_batches(
        self,
        epoch: int,
        batch_size: int,
        seed: int,
        kind: str,
        steps: int,
        regularization: Regularization = NONE,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Returns one epoch of `(images, labels)` batches, as `keras.Model.fit` takes them.

        Args:
            epoch: Which epoch; with `seed` it decides the order and the augmentation.
            batch_size: Images per batch, over all workers; all batches are full.
            seed: Seed of order and augmentation.
            kind: Augmentation, as for `augment.augment`.
            steps: Number of batches.
            regularization: What else is done to the batches.
            shard: `(index, count)` of this worker among several, which together get the
                batches that one worker alone would get.
        """

    @abc.abstractmethod
    def test_batches(self, batch_size: int, one_hot: bool = False) -> Batches:
        """Returns all test images in batches of at most `batch_size`, in a fixed order.

        Args:
            batch_size: Largest number of images in a batch.
            one_hot: Whether labels are one-hot vectors instead of numbers.
        """

    @abc.abstractmethod
    def train_sample(self, count: int, seed: int) -> np.ndarray:
        """Returns at most `count` training images, not augmented, as one float32 array."""

    @abc.abstractmethod
    def test_sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns at most `count` test images and their labels, spread over the whole set."""

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which errors of reading name the file and the image."""
        return contextlib.nullcontext()

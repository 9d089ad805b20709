"""Batches of images held by this process: `ArrayDataset` and `ArrayImages`."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from repq_tf.files.pictures import scale_pixels
from repq_tf.train.data.epoch import EpochDataset
from repq_tf.train.engines.batches import Batches
from repq_tf.train.tasks.classification.augment import augment, central_crop
from repq_tf.train.tasks.classification.images import Images
from repq_tf.train.tasks.classification.randaugment import randaugment
from repq_tf.train.tasks.classification.regularization import NONE, Regularization


class ArrayDataset(EpochDataset):
    """One epoch of training batches out of arrays; see `EpochDataset`.

    Args:
        images: uint8 array `(n, h, w, c)`, or an object that, indexed by an array of
            integers, reads such an array (`folder.ImageFiles`).
        labels: Integer array `(n,)`.
        batch_size: Images per batch, over all workers.
        size: `(height, width)` of the batches.
        kind: Augmentation, as for `augment.augment`.
        regularization: A `Regularization`.
        classes: Number of classes, for soft labels.
        **options: Those of `EpochDataset`.
    """

    def __init__(
        self,
        images: Any,
        labels: np.ndarray,
        batch_size: int,
        size: tuple[int, int],
        kind: str = "none",
        regularization: Regularization = NONE,
        classes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(len(labels), batch_size, **options)
        self.images = images
        self.labels = labels
        self.size = size
        self.kind = kind
        self.regularization = regularization
        self.classes = classes

    def make_batch(  # noqa: D102
        self, chosen: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        batch = augment(self.images[chosen], self.kind, self.size, rng)
        more = self.regularization
        if more.randaugment:
            batch = np.stack([randaugment(image, more.randaugment, rng) for image in batch])
        images, labels = scale_pixels(batch), self.labels[chosen]
        if not more.soft_labels:
            return images, labels
        one_hot = keras.utils.to_categorical(labels, self.classes).astype("float32")
        return more.soften(images, one_hot, more.draw_weights(len(chosen), rng))


class EvaluationDataset(keras.utils.PyDataset):
    """All images once, in their order.

    Args:
        images: As in `ArrayDataset`.
        labels: Integer array `(n,)`.
        batch_size: Images per batch; the last one has what is left.
        size: `(height, width)` of the batches.
        workers: Threads that prepare batches.
        classes: Number of classes, if labels are wanted as one-hot vectors.
    """

    def __init__(
        self,
        images: Any,
        labels: np.ndarray,
        batch_size: int,
        size: tuple[int, int],
        workers: int = 1,
        classes: int | None = None,
    ) -> None:
        super().__init__(workers=workers)
        self.images = images
        self.labels = labels
        self.classes = classes
        self.size = size
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        first = index * self.batch_size
        part = np.arange(first, min(first + self.batch_size, len(self.labels)))
        labels = self.labels[part]
        if self.classes is not None:
            labels = keras.utils.to_categorical(labels, self.classes)
        return scale_pixels(central_crop(self.images[part], self.size)), labels


class ArrayImages(Images):
    """Training and test images in memory, or read from files batch by batch.

    Args:
        name: Name for messages and the report.
        class_names: Names of the classes, in the order of the labels.
        train: `(images, labels)`, as in `ArrayDataset`.
        test: The same of the test images.
        size: `(height, width)` of the network's input; by default that of the images. The
            images may be larger, to be cropped.
        skipped: Names of the images that were left out because they cannot be decoded.
    """

    def __init__(
        self,
        name: str,
        class_names: Iterable[str],
        train: tuple[Any, np.ndarray],
        test: tuple[Any, np.ndarray],
        size: tuple[int, int] | None = None,
        skipped: Iterable[str] = (),
    ) -> None:
        shape = train[0].shape
        super().__init__(
            name=name,
            class_names=tuple(class_names),
            image_shape=(*(size or shape[1:3]), shape[3]),
            train_size=len(train[1]),
            test_size=len(test[1]),
            skipped=skipped,
        )
        self._train = train[0], np.asarray(train[1], "int32")
        self._test = test[0], np.asarray(test[1], "int32")
        self._size = self.image_shape[:2]
        in_memory = isinstance(train[0], np.ndarray)
        self._workers = 1 if in_memory else min(8, os.cpu_count() or 1)

    def train_batches(  # noqa: D102
        self,
        epoch: int,
        batch_size: int,
        seed: int,
        kind: str,
        steps: int,
        regularization: Regularization = NONE,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches:
        return ArrayDataset(
            *self._train,
            batch_size=batch_size,
            size=self._size,
            kind=kind,
            seed=seed,
            epoch=epoch,
            steps=steps,
            workers=self._workers,
            regularization=regularization,
            classes=len(self.class_names),
            shard=shard,
        )

    def test_batches(self, batch_size: int, one_hot: bool = False) -> Batches:  # noqa: D102
        classes = len(self.class_names) if one_hot else None
        return EvaluationDataset(*self._test, batch_size, self._size, self._workers, classes)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turns errors of backends that were raised by an unreadable file into its name."""
        try:
            yield
        except Exception as error:
            faults = [getattr(images, "fault", None) for images, _ in (self._train, self._test)]
            for fault in filter(None, faults):
                raise fault from error
            raise

    def train_sample(self, count: int, seed: int) -> np.ndarray:  # noqa: D102
        chosen = np.random.default_rng(seed).permutation(self.train_size)[:count]
        return scale_pixels(central_crop(self._train[0][chosen], self._size))

    def test_sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: D102
        chosen = np.unique(np.linspace(0, self.test_size - 1, count).astype(int))
        images = scale_pixels(central_crop(self._test[0][chosen], self._size))
        return images, self._test[1][chosen]
